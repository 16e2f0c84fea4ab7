"""What was measured, to look at: tables, the page, charts of sweeps. Modules are imported where they are used."""
