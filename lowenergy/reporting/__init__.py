"""Show what was measured: tables, the page, charts of sweeps. Modules are imported where they are used."""
