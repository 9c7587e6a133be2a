"""How a loss landscape is measured: the common loss, folded norm gains, the radius, and which points."""
