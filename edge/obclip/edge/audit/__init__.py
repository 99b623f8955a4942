"""What the words that a prompt leaves in the clear say about the attributes it hides.

    from obclip.edge.audit import audit

    report = audit("a bride in a white wedding dress", "default")
    report.effective_n      # 1.05 of 2
    report.words["gender"]  # which words give it away
    report.suggestions      # what to leave out

The numbers are those of one adversary: word weights learned from captions of photographs, and judgements of the
project's own (`associations.toml`) where captions are silent. Another adversary may know more.
"""

from obclip.edge.audit.model import AuditModel, Posterior, Prior, Word
from obclip.edge.audit.report import AuditReport, audit
from obclip.edge.audit.suggest import Suggestion

__all__ = ["AuditModel", "AuditReport", "Posterior", "Prior", "Suggestion", "Word", "audit"]
