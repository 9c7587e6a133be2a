"""Does this program do what its tests say? Model-written code runs here and nowhere else.

`Sandbox` (client) starts workers by exec; each worker is a stdlib-only supervisor inside a jail made once, with a
fork-server that gives every program a process of its own, limits, no network, no files but its own directory.
Everything below `client` imports the standard library only: it runs inside the jail.
"""
