"""How long stored models take: `lowenergy bench`."""
