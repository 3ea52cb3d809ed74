"""What tests share: data sets, models and commands made here."""
