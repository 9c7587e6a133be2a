"""Who is better? Pairwise judgements of a candidate's answers against a baseline's. No torch here."""
