"""Files on disk: calibrations, plans, adapter folders, and the folder that a run works in."""
