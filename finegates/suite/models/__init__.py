"""The models that runs begin with: pretrained, or made here."""
