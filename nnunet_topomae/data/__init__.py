"""The path of the data from preprocessed cases to batches of crops with key points."""
