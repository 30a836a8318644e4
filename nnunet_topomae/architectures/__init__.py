"""Networks: UNETR++, the ViT masked autoencoder, their co-pre-training, their fusion, and the rule that sizes them."""
