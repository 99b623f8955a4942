"""English as people write it: labelled prompts, names, marks, and the options that change a set."""

from __future__ import annotations

import sys
from types import FrameType

import pytest
from data import coco_captions, needs_coco
from labels import detect, labelled

from obclip.core.errors import InputError, PrivacyError
from obclip.edge.oblivious import Options, candidate_set, check_negative, load_policy, unmark
from obclip.edge.oblivious.history import changed_marks, remember_marks

DEFAULT, WORLD, SENSITIVE = load_policy("default"), load_policy("world"), load_policy("sensitive")


def prompts(text: str, policy=DEFAULT, **options) -> list[str]:
    return list(candidate_set(text, policy, Options(**options)).prompts)


def real(text: str, policy=DEFAULT, **options) -> str:
    found = candidate_set(text, policy, Options(**options))
    return found.prompts[found.index]


@pytest.mark.parametrize(("attribute", "floor"), [("gender", 0.99), ("age", 0.97), ("ethnicity", 0.95), ("skin", 0.9)])
def test_recall_on_the_labelled_prompts(attribute: str, floor: float):
    found = detect(labelled("prompts"), DEFAULT)
    assert found.labelled[attribute] >= 9
    assert found.recall(attribute) >= floor, found.missed
    assert found.recall_of_sent(attribute) >= floor, found.missed
    assert found.precision(attribute) >= 0.95


def test_labels_and_mentions_match_by_whole_words():
    def found(text: str) -> int:
        row = {"prompt": "a woman and 2girls", "mentions": [{"text": text, "attribute": "gender"}]}
        return detect([row], DEFAULT).found["gender"]

    assert [found(text) for text in ("man", "woman", "the woman", "a wom", "2girls", "irl")] == [0, 1, 1, 0, 1, 0]


def test_few_prompts_without_a_name_are_refused():
    rows = [r for r in labelled("prompts") if "name" not in r["strata"]]
    assert len(detect(rows, DEFAULT).prompts_refused) <= 0.08 * len(rows)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a Frenchwoman in her sixties", "an old european woman"),
        ("two elderly Asians playing chess", "two old asian people playing chess"),
        ("the elderly sitting on a bench", "the old people sitting on a bench"),
        ("a womman with a mans hat", "a woman with a man's hat"),
        ("a Latina businesswoman", "a businesswoman"),
        ("a pale woman", "a light-skinned woman"),
        ("a ballerina", "a female ballet dancer"),
        ("her, a mother of two", "her, a mother of two"),
        ("A TALL DARK-HAIRED YOUNG ASIAN WOMAN", "a tall dark-haired young asian woman"),
        ("a seventy-year-old teacher and his class", "an old teacher and his class"),
        ("a woman in her mid-thirties, 85mm, bokeh", "a young woman, 85mm, bokeh"),
        ("a Navajo woman", "a woman"),
        ("a dock worker in his fifties", "a middle-aged male dock worker"),
        ("a Thai street food vendor", "an asian street food vendor"),
        ("his teenage daughter", "his teenage daughter"),
        ("a man, 32, in a hat", "a young man, in a hat"),
        ("'a woman'", "'a woman'"),
        ("a woman, she'll smile", "a woman, she'll smile"),
    ],
)
def test_canonical_words(text: str, expected: str):
    assert real(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a white walking a dog", "a caucasian person walking a dog"),
        ("a black sitting on a bench", "an african person sitting on a bench"),
        ("a black, eating lunch", "an african person, eating lunch"),
        ("a black smiling at a dog", "an african person smiling at a dog"),
        ("a happy white eating lunch", "a happy caucasian person eating lunch"),
        ("a white painting a wall", "a caucasian person painting a wall"),
        ("an asian in a hat", "an asian person in a hat"),
        ("white sitting on a bench", "caucasian person sitting on a bench"),
        ("black walking a dog", "african person walking a dog"),
        ("a tall black walking a dog", "a tall african person walking a dog"),
    ],
)
def test_colours_and_peoples_that_stand_for_a_person_are_hidden(text: str, expected: str):
    assert real(text) == expected
    assert len(prompts(text)) == 5


@pytest.mark.parametrize("text", ["an american in a hat", "portrait of an american", "a native with a spear"])
def test_a_people_without_a_value_stays_here_where_it_stands_alone(text: str):
    assert candidate_set(text, DEFAULT).unsent


@pytest.mark.parametrize(
    "text",
    [
        "a white in a hat",
        "a black on a horse",
        "a woman and a white in jeans",
        "a black who smiles",
        "a brown with a beard",
        "a tall black in a suit",
        "a short smiling white at a desk",
        "black playing tennis",
    ],
)
def test_a_colour_that_may_be_a_person_is_refused(text: str):
    with pytest.raises(PrivacyError, match="may be about a person"):
        candidate_set(text, DEFAULT)


@pytest.mark.parametrize(
    "text",
    [
        "a white cat eating", "a white car", "the white of an egg", "a black and white photo", "white on black",
        "a white on black design", "a black with white stripes", "a wall painted white with a door",
        "a white, wooden chair", "a black walking stick", "a white, flowing dress", "a white building in a town",
        "a white painting on a wall", "a white and blue bus", "a white and a black cat", "an american flag",
        "two white dogs running in a park", "white walking shoes", "black and white", "white glowing in the dark",
        "wall in white standing alone", "white, standing lamp", "dressed in black walking away",
        "a pile of white sitting on a table",
    ],
)  # fmt: skip
def test_colours_of_things_are_left_alone(text: str):
    assert prompts(text) == [text]


@pytest.mark.parametrize(
    "text",
    [
        "an old castle", "a male connector", "an Indian elephant", "young leaves", "Mother Earth", "a mother duck",
        "Chinese food on a table", "french fries", "a king size bed", "a street in Paris", "a queen bee", "baby goats",
        "a senior golden retriever", "the ship and its old mast", "a German shepherd puppy", "a sign in Chinese",
    ],
)  # fmt: skip
def test_attribute_words_that_are_about_no_person_are_left_alone(text: str):
    found = candidate_set(text, DEFAULT)
    assert found.mentions == ()
    assert len(found.prompts) == 1


@pytest.mark.parametrize(
    "text",
    [
        "Emma on a bench", "emma watson on stage", "a portrait of Zendaya", "Mr Bean", "Rose sitting on a bench",
        "Dr. Amina Yusuf", "uncle Bob asleep", "Beyoncé on stage", "Hiroshi and a cat", "an androgynous model",
        "a paladin, he is middle-aged and tired", "a koi on a black-skinned forearm", "a man and 'his' dog",
        "anolder man", "une femme sur la plage", "a w0man named nguyen",
    ],
)  # fmt: skip
def test_names_and_unknown_words_for_people_are_refused(text: str):
    with pytest.raises(PrivacyError, match="--allow"):
        candidate_set(text, DEFAULT)


def test_the_makers_of_pictures_and_places_are_no_names_to_hide():
    for text in ("a woman, painted by Greg Rutkowski", "a castle in the style of Van Gogh", "a woman in London"):
        assert candidate_set(text, DEFAULT).prompts


@pytest.mark.parametrize(
    ("text", "n"),
    [("(woman:1.3), masterpiece", 2), ("((young woman)), bokeh", 6), ("1girl, solo", 2), ("woman_portrait_style", 2)],
)
def test_weights_and_tag_styles_are_read_through(text: str, n: int):
    assert len(prompts(text)) == n


def test_tags_in_angle_brackets_are_refused():
    with pytest.raises(PrivacyError, match="tag"):
        candidate_set("a castle <lora:detail_tweaker:0.8>", DEFAULT)


def test_the_commonest_names_are_names_in_lower_case_too():
    for name in ("james", "john", "michael", "mary", "linda", "jennifer", "anna", "sarah", "karen", "henry"):
        with pytest.raises(PrivacyError, match=name):
            candidate_set(f"a photo of {name} at home", DEFAULT)


def test_names_become_a_person_where_the_policy_says_so():
    assert prompts("Emma Watson in a red dress", WORLD) == ["a person in a red dress"]
    assert prompts("Mrs. Smith and her cat", WORLD) == prompts("Mr. Jones and his cat", WORLD)


def test_allowed_spans_pass():
    assert real("a woman named Zorblax", allow=("Zorblax",)) == "a woman named zorblax"


@pytest.mark.parametrize(
    ("text", "n"), [("a man and his wife", 4), ("a woman holds a girl in her arms", 4), ("a doctor and her patient", 2)]
)
def test_several_people_have_slots_of_their_own(text: str, n: int):
    assert len(prompts(text)) == n


def test_a_man_and_his_wife_keeps_all_readings_grammatical():
    assert prompts("a man and his wife") == [
        "a man and his husband", "a man and his wife", "a woman and her husband", "a woman and her wife",
    ]  # fmt: skip


def test_tied_people_move_together():
    text = "a young asian man and an old indian woman"
    with pytest.raises(PrivacyError, match="--tie"):
        prompts(text)
    found = prompts(text, tie=True)
    assert len(found) == 30
    assert all(prompts(p, tie=True) == found for p in found)


def test_padding_gives_exactly_n_and_more_is_refused():
    found = candidate_set("a woman", DEFAULT, Options(pad=6))
    assert len(found.prompts) == len(set(found.prompts)) == 6
    assert found.prompts[found.index] == "a woman"
    with pytest.raises(PrivacyError, match="more than the 4"):
        candidate_set("a young woman", DEFAULT, Options(pad=4))
    with pytest.raises(InputError, match="between 1 and 64"):
        candidate_set("a woman", DEFAULT, Options(pad=65))


def test_absence_can_be_a_value():
    hidden = {"hide": ("gender", "age")}
    found = prompts("a teacher and her class", **hidden)
    assert len(found) == 12
    assert prompts("an old teacher and their class", **hidden) == found
    assert prompts("a woman teacher and her class", **hidden) == found
    with pytest.raises(InputError, match="has no values for height"):
        prompts("a woman", hide=("height",))


def test_pregnancy_is_hidden_whether_said_or_not():
    assert prompts("a pregnant woman", SENSITIVE) == prompts("a woman", SENSITIVE)


def test_further_attributes_are_policies():
    assert len(prompts("a Muslim doctor", SENSITIVE)) == 12
    assert real("two Jews at a table", SENSITIVE) == "two jewish people at a table"


def test_a_users_own_attribute(tmp_path):
    path = tmp_path / "hair.toml"
    path.write_text(
        '[gender]\nvalues = ["woman", "man"]\n[age]\nvalues = ["young", "old"]\nminors = true\n'
        'stages = { young = "young", old = "old" }\n[skin]\nrefuse = true\n[ethnicity]\nrefuse = true\n'
        '[hair]\nvalues = ["blond", "dark-haired"]\n'
        'forms = { blond = ["blond", "blonde"], dark-haired = ["dark-haired"] }\n'
    )
    assert prompts("a blonde woman", load_policy(str(path))) == [
        "a blond man", "a blond woman", "a dark-haired man", "a dark-haired woman",
    ]  # fmt: skip
    path.write_text(path.read_text().split("[hair]")[0] + '[hair]\nvalues = ["blond", "dark"]\n')
    with pytest.raises(InputError, match="forms"):
        load_policy(str(path))


class TestMarks:
    def test_alternatives_are_sorted_and_closed(self):
        found = candidate_set("[[Bob|Alice|Carol]] as a nurse", DEFAULT)
        assert found.prompts == ("alice as a nurse", "bob as a nurse", "carol as a nurse")
        assert found.index == 1
        assert all(candidate_set(m, DEFAULT).prompts == found.prompts for m in found.marked)

    def test_protect_marks_every_occurrence(self):
        found = candidate_set("Alice, and Alice again", DEFAULT, Options(protect=("Alice|Bob",)))
        assert found.prompts == ("alice, and alice again", "bob, and bob again")

    @pytest.mark.parametrize("bad", ["[[Alice]]", "[[Alice|Alice]]", "[[|Bob]]", "[[a|b]] and [[b|a]]"])
    def test_marks_that_hide_nothing_are_refused(self, bad: str):
        with pytest.raises(InputError):
            candidate_set(f"{bad} at sea", DEFAULT)

    def test_a_word_that_is_not_there_cannot_be_protected(self):
        with pytest.raises(InputError, match="does not have"):
            candidate_set("a woman", DEFAULT, Options(protect=("Alice|Bob",)))

    def test_the_device_goes_on_with_the_real_one(self):
        assert unmark("[[Alice|Bob]] at [[sea|home]]") == "Alice at sea"

    def test_changing_the_alternatives_warns_and_the_note_holds_no_word(self, tmp_path):
        note = tmp_path / "marks.json"
        assert changed_marks("[[Alice|Bob]]", note) == []
        remember_marks("[[Alice|Bob]]", note)
        assert changed_marks("[[Bob|Alice]] again", note) == []
        assert len(changed_marks("[[Alice|Dave]]", note)) == 1
        assert b"alice" not in note.read_bytes().lower()

    def test_a_note_that_cannot_be_written_costs_nothing(self, tmp_path):
        (tmp_path / "file").write_text("")
        remember_marks("[[Alice|Bob]]", tmp_path / "file" / "marks.json")
        remember_marks("[[Alice|Bob]]", tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_protected_word_in_the_negative_prompt_is_named():
    with pytest.raises(PrivacyError, match="'bride'"):
        check_negative("blurry, a bride", DEFAULT)


@pytest.mark.parametrize(
    ("text", "most"),
    [("a young asian woman and her dog", 9_000), ("a man and his wife", 1_100), ("a lighthouse at dusk, 85mm", 400)],
)
def test_prompts_are_read_fast(text: str, most: int):
    """The parser's calls are counted, which no busy machine changes: 7 000 take 8 ms on a core of 2.5 GHz."""
    candidate_set(text, DEFAULT)  # words are looked up once
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call" and "oblivious" in frame.f_code.co_filename

    sys.setprofile(count)
    try:
        candidate_set(text, DEFAULT)
    finally:
        sys.setprofile(None)
    assert 10 < calls < most


@needs_coco
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_captions_of_photographs_are_closed_or_refused(every: int):
    """Every candidate of every transformed caption leads back to the set it came from."""
    refused, sets = 0, {}
    captions = coco_captions()[::every]
    for caption in captions:
        try:
            found = candidate_set(caption, DEFAULT).prompts
        except PrivacyError:
            refused += 1
            continue
        for prompt in found:
            assert sets.setdefault(prompt, found) == found
            assert len(found) == 1 or candidate_set(prompt, DEFAULT).prompts == found
    assert refused <= 0.08 * len(captions)
