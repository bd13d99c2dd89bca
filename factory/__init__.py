"""How completions and pairs are made: recipe, plan, Ray Data pools, run directory, command line."""
