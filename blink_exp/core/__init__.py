"""What methods and models agree on: sequences, decisions, scans, views and encodings. No model is loaded here."""
