"""The cloud: the first k denoising steps of the large model, for all N candidates of a request."""
