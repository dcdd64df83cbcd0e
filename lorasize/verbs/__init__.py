"""The verbs, a file each: what calibrate, plan, apply, verify, capacity and check do, from top to bottom.

Nothing is handed on from here: the function `plan` would hide the module of its name.
"""
