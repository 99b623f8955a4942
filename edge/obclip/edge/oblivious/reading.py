"""The state of one reading of a prompt, and the steps over its tokens that every part of the reading takes."""

from __future__ import annotations

from obclip.core.errors import PrivacyError
from obclip.edge.oblivious.policy import Policy
from obclip.edge.oblivious.template import Mention, Person
from obclip.edge.oblivious.tokens import Token

_COUNTS = "a an the one two three four five several some many few both these those other another"
DETERMINERS = frozenset(_COUNTS.split())
_SEVERAL = "people crowd family couple group team band choir audience class army gang clan duo trio"
GROUPS = frozenset(_SEVERAL.split())
WAYS_OUT = "put it another way, leave it out, or let it through with --allow"


def base(text: str) -> str:
    """Without a possessive ending."""
    return text.removesuffix("'s").removesuffix("'")


class Reading:
    def __init__(self, tokens: list[Token], policy: Policy) -> None:
        self.tokens, self.policy = tokens, policy
        self.context = policy.english["context"]
        self.people: list[Person] = []
        self.owner: dict[int, int] = {}  # token index -> person, for nouns and for role words given a slot
        self.place: dict[int, int] = {}  # token index of a role word -> where the words about its person go
        self.dropped: set[int] = set()
        self.public: set[int] = set()
        self.stages: dict[int, list[str]] = {}
        self.mentions: list[tuple[int, Mention]] = []
        self.unsent: list[str] = []

    def _text(self, i: int | None) -> str:
        return "" if i is None else self.tokens[i].text

    def _kind(self, i: int | None) -> str:
        return "" if i is None else self.tokens[i].kind

    def _next(self, i: int, step: int = 1) -> int | None:
        """Index of the nearest token that is not a space or dropped, or None."""
        j = i + step
        while 0 <= j < len(self.tokens):
            if self.tokens[j].kind != "space" and j not in self.dropped:
                return j
            j += step
        return None

    def _drop(self, i: int) -> None:
        """Leave token i out, with the space after it (or before it, at the end)."""
        self.dropped.add(i)
        if self.tokens[i].text.startswith(", "):  # an age with the comma and the space before it
            return
        if i + 1 < len(self.tokens) and self.tokens[i + 1].kind == "space":
            self.dropped.add(i + 1)
        elif i > 0 and self.tokens[i - 1].kind == "space":
            self.dropped.add(i - 1)

    def _note(self, i: int, attribute: str, person: int) -> None:
        self.mentions.append((i, Mention(self.tokens[i].text.strip(" ,"), attribute, person)))

    def _set(self, person: int, attribute: str, value: str, at: int | None = None) -> None:
        if at is not None:
            self._note(at, attribute, person)
        where = "" if at is None else f" ({self.tokens[at].text.strip(' ,')!r})"
        if attribute in self.policy.refused:
            raise PrivacyError(
                f"the prompt says a person's {attribute}{where}, which policy {self.policy.name} does not hide; "
                + WAYS_OUT
            )
        if value not in self.policy.values[attribute] and attribute == "ethnicity" and self.policy.drop_others:
            self.unsent.append(self.tokens[at].text if at is not None else value)
            return
        if value not in self.policy.values[attribute]:
            known = ", ".join(self.policy.values[attribute])
            raise PrivacyError(
                f"policy {self.policy.name} has no value for this {attribute}{where}: its values are {known}; "
                + WAYS_OUT
            )
        known_value = self.people[person].attributes.setdefault(attribute, value)
        if known_value != value:
            raise PrivacyError(f"the prompt says two things about one person's {attribute}{where}; say one")

    def _person_at(self, head: int) -> int:
        if head not in self.owner:
            self.people.append(Person())
            self.owner[head] = len(self.people) - 1
        return self.owner[head]

    def _last_noun_before(self, i: int) -> int | None:
        """The person named before i, a noun's or else a role word's."""
        owners = [j for j in self.owner if j < i]
        roles = [j for j in range(i) if self.tokens[j].kind == "people"]
        return max(owners, default=max(roles, default=None))
