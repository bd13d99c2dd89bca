"""What to contrast: PopAlign's six strategies (arXiv 2410.13785) as pure functions over frozen values.

Imports the standard library only; a test holds it to that.
"""
