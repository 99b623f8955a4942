"""The judge of the embedded pair: which attributes, activity and style a drawing shows, and how far sets are apart.

from obclip.export.classifier import load_classifier

judge = load_classifier()
judge.classify(images)["gender"]        # images: uint8 [M, 64, 64, 3]
"""

from obclip.export.classifier.judge import HEADS, Classifier, frechet_distance, load_classifier

__all__ = ["HEADS", "Classifier", "frechet_distance", "load_classifier"]
