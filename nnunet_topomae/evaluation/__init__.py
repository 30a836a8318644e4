"""How good a segmentation is: metrics, surfaces and statistics."""
