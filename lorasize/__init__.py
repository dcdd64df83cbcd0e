"""lorasize: how big must the adapter be to hold this text word for word, and did it?"""

__version__ = "0.1.0"
