"""The verb ``study``: many variants of a recipe, over seeds, to one table, plots and a sheet."""
