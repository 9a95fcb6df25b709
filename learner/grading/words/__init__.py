"""The words and symbols that grading knows for numbers and units."""
