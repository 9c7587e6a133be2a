"""Reads records and shows what they hold: tables, figures, the report. No torch, no network."""
