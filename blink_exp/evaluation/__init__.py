"""One configuration on one benchmark: settings to answers, answers to records, records to scores, and the store that keeps them."""
