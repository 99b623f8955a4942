"""The recipe of the device's word lists: from WordNet, SCOWL and the US Census to `obclip.edge.lexicon`."""
