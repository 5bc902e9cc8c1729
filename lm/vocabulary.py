"""What every tokenizer and every model agree on."""

END_ID = 0  # the token that begins and ends a document
