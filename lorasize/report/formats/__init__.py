"""Records in each format: a file a format, and in it one dictionary that says what is made of which record."""
