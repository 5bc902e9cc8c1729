"""The one token that every tokenizer and every model must know."""

END_ID = 0  # the token that begins and ends a document
