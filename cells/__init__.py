"""One cell: its door, its workers on Ray, its stores and its way to the acquirer."""
