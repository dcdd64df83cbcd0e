"""The Parametric Memory Law: its form, its fit, the transition to recall, and which probe tells most next.

Pure arithmetic: nothing here knows a model, a file or a clock.
"""
