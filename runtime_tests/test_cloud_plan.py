"""Plans and policies: whatever is combined, every candidate is predicted once a step, from features that are there."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from obclip.cloud.attributes import attribute_groups
from obclip.cloud.cost import Profile, plan_macs, profile_unet
from obclip.cloud.denoising import Denoising, share_noise
from obclip.cloud.engine import execute, run_step
from obclip.cloud.model import CloudModel
from obclip.cloud.parts import Attention, Keep, needs
from obclip.cloud.plan import Branch, Policy, Row, build_plan, plain_plan
from obclip.cloud.policies import (
    DeepCache,
    GuidanceFrom,
    Prefix,
    PublishedCache,
    PublishedReuse,
    SharedDeep,
    SharedUnconditional,
    Tree,
    pivot_of,
)
from obclip.cloud.text import Conditioning, TextEncoders
from obclip.cloud.unet import LayeredUNet
from obclip.core.errors import InputError
from obclip.core.pairs import load_pair
from obclip.core.schedule import build_schedule
from obclip.core.schedule_config import ScheduleConfig
from obclip.core.wire import Request

PAIR = load_pair("emoji")
DEPTH = 4  # of the tests' small models


def request(n: int = 4, k: int = 6) -> Request:
    people = [f"a {age} {who}" for age in ("young", "old", "tall") for who in ("man", "woman")]
    return Request(
        pair=PAIR.digest, candidates=tuple(sorted(people[:n])), negative_prompt="red", seed=3, height=64, width=64,
        steps=8, handoff=k, guidance=3.5, solver="dpm++2m",
    )  # fmt: skip


@pytest.fixture(scope="module")
def profile(model: CloudModel) -> Profile:
    return profile_unet(model.layered, PAIR.latent_shape, model.text.max_tokens)


steps = st.integers(0, 6)
rows_policies = st.lists(
    st.one_of(
        st.builds(SharedUnconditional, start=steps),
        st.builds(Prefix, steps=steps),
        st.builds(Tree, starts=st.lists(steps, min_size=1, max_size=3).map(lambda s: tuple(sorted(s)))),
        st.builds(GuidanceFrom, start=steps),
    ),
    max_size=3,
)
part_policies = st.one_of(
    st.just([]),
    st.builds(DeepCache, depth=st.integers(1, DEPTH), full=st.lists(steps, max_size=4).map(tuple)).map(lambda p: [p]),
    st.builds(SharedDeep, depth=st.integers(1, DEPTH), start=st.integers(0, 4)).map(lambda p: [p]),
    st.tuples(
        st.builds(PublishedCache, st.integers(1, 3), st.integers(3, 5), st.just(DEPTH), st.integers(2, 5)),
        st.builds(PublishedReuse, until=steps),
    ).map(list),
)
policies = st.tuples(rows_policies, part_policies).map(lambda pair: [*pair[0], *pair[1]])


@settings(max_examples=150)
@given(policies, st.integers(1, 6), st.integers(1, 6), st.integers(2, 12))
def test_every_plan_predicts_each_candidate_once_a_step_from_features_that_were_kept(
    chosen: list[Policy], n: int, k: int, max_rows: int
):
    plan = build_plan(request(n, k), chosen, max_rows)
    kept: dict[Row, Keep] = {}
    assert [s.index for s in plan.steps] == list(range(k))
    for step in plan.steps:
        once = set(step.rows)  # a pivot may lead several passes of its group
        conditional = sorted(m for r in once if r.branch is Branch.CONDITIONAL for m in r.members)
        unconditional = sorted(m for r in once if r.branch is Branch.UNCONDITIONAL for m in r.members)
        assert conditional == list(range(n))
        assert unconditional in ([], conditional)
        for one in step.passes:
            assert 1 <= len(one.rows) <= max_rows
            want = needs(one.part)
            assert len(one.sources) == (len(one.rows) if want else 0)
            for row, source in zip(one.rows, one.sources, strict=bool(want)):
                assert source.branch is row.branch
                assert set(want.depths) <= set(kept[source].depths)
                assert not want.skips or kept[source].skips
                assert not want.attention or kept[source].attention
            if one.part.attention is Attention.PIVOT:
                assert len(one.pivots) == len(one.rows)
                assert all(one.rows[p].branch is row.branch for p, row in zip(one.pivots, one.rows, strict=True))
            for row in one.rows if one.keep else ():
                assert one.part.depth is None
                before = kept.get(row, Keep())
                kept[row] = before | one.keep


@settings(max_examples=25)
@given(policies, st.integers(1, 4))
def test_the_predicted_cost_is_what_pytorch_counts(model: CloudModel, profile: Profile, chosen: list[Policy], n: int):
    asked = request(n, 5)
    plan = build_plan(asked, chosen)
    with torch.inference_mode(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        state = Denoising(model, PAIR, asked, plan)
        counter = FlopCounterMode(display=False)
        with counter:
            for step in plan.steps:
                run_step(state, step)
            model.project(torch.zeros(n + any(s.guided for s in plan.steps), *state.texts.hidden.shape[1:]))
    assert plan_macs(plan, profile).total == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


@pytest.mark.parametrize(
    ("guidance", "chosen", "guided"),
    [(3.5, [], True), (3.5, [GuidanceFrom(3)], True), (3.5, [GuidanceFrom(4)], False), (1.0, [], False)],
)
def test_the_negative_prompt_is_encoded_if_a_step_is_guided_and_paid_for_only_then(
    model: CloudModel, profile: Profile, guidance: float, chosen: list[Policy], guided: bool
):
    heard: list[list[str]] = []

    class Listening(TextEncoders):
        def encode(self, prompts: list[str], device: torch.device) -> Conditioning:
            heard.append(prompts)
            return super().encode(prompts, device)

    asked = replace(request(3, 4), guidance=guidance)
    plan = build_plan(asked, chosen)
    execute(plan, asked, replace(model, text=Listening(model.text.encoders)), PAIR)
    assert heard == [[*(["red"] if guided else []), *asked.candidates]]
    passes = sum(profile.cost(p).total for step in plan.steps for p in step.passes)
    assert plan_macs(plan, profile).total - passes == len(heard[0]) * profile.text.total


def test_the_papers_costs_are_those_of_one_attention_product():
    """Table 2 of the paper, in 10^12 MACs, of Stable Diffusion 1.5 at 512 px."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )
    profile = profile_unet(LayeredUNet(unet), (4, 64, 64), 77)

    def cost(n: int, k: int) -> float:
        asked = replace(request(n), steps=25, handoff=k)
        return sum(len(p.rows) for s in plain_plan(asked).steps for p in s.passes) * profile.row.published / 1e12

    for n, k, printed in [(1, 25, 18.53), (1, 10, 7.41), (2, 10, 14.82), (6, 10, 44.46), (6, 5, 22.23)]:
        assert cost(n, k) == pytest.approx(printed, rel=0.003)


def test_at_step_0_a_shared_unconditional_branch_is_exact(model: CloudModel):
    asked = request(4, 1)
    plain = execute(plain_plan(asked), asked, model, PAIR).latents.astype(float)
    shared = execute(build_plan(asked, [SharedUnconditional()]), asked, model, PAIR).latents.astype(float)
    np.testing.assert_allclose(shared, plain, atol=4e-3)


def test_a_prefix_to_the_end_gives_all_candidates_the_same(model: CloudModel):
    asked = request(4, 3)
    latents = execute(build_plan(asked, [Prefix(3)]), asked, model, PAIR).latents
    assert np.all(latents == latents[0])
    branched = execute(build_plan(asked, [Prefix(2)]), asked, model, PAIR).latents
    assert not np.all(branched == branched[0])


def test_a_cache_refreshed_at_every_step_is_no_cache(model: CloudModel):
    asked = request(3, 4)
    plain = execute(plain_plan(asked), asked, model, PAIR)
    cached = execute(build_plan(asked, [DeepCache(2, (0, 1, 2, 3))]), asked, model, PAIR)
    np.testing.assert_array_equal(cached.latents, plain.latents)


@pytest.mark.parametrize(
    "chosen",
    [
        [DeepCache(2, (0, 2))],
        [SharedUnconditional(), Prefix(2), DeepCache(3, (0, 2, 4))],
        [PublishedCache(2, 3, DEPTH), PublishedReuse(2)],
        [SharedUnconditional(), Tree((1, 3)), SharedDeep(2, 3)],
    ],
    ids=["deep cache", "prefix", "published", "tree"],
)
def test_policies_stay_near_the_plain_plan_and_are_not_it(model: CloudModel, chosen: list[Policy]):
    asked = request(4, 6)
    plain = execute(plain_plan(asked), asked, model, PAIR).latents.astype(float)
    got = execute(build_plan(asked, chosen), asked, model, PAIR).latents.astype(float)
    error = np.sqrt(((got - plain) ** 2).mean() / (plain**2).mean())
    assert 1e-4 < error < 0.3


def test_passes_split_by_width_give_the_same(model: CloudModel):
    asked = request(6, 5)
    chosen = [SharedUnconditional(), Prefix(1), PublishedCache(2, 3, DEPTH), PublishedReuse(2)]
    wide = execute(build_plan(asked, chosen), asked, model, PAIR).latents.astype(float)
    narrow = execute(build_plan(asked, chosen, max_rows=3), asked, model, PAIR).latents.astype(float)
    np.testing.assert_allclose(narrow, wide, atol=6e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_shared_noise_means_equal_noise(prediction: str):
    config = ScheduleConfig.from_dict({"prediction_type": prediction, "beta_schedule": "scaled_linear"})
    schedule = build_schedule(config, "ddim", 10)
    x = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean_output = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for i in range(10):
        a, b = schedule.to_x0[i]
        alpha = schedule.alphas[i]

        def noise(x: torch.Tensor, output: torch.Tensor, a=a, b=b, alpha=alpha) -> torch.Tensor:
            return (x - alpha * (a * x + b * output)) / np.sqrt(1 - alpha**2)

        outputs = mean_output + share_noise(schedule, i, x)
        expected = noise(x.mean(0), mean_output)
        for one, output in zip(x, outputs, strict=True):
            torch.testing.assert_close(noise(one, output), expected)


def test_candidates_branch_attribute_by_attribute():
    people = [("man", "his"), ("woman", "her")]
    groups = attribute_groups(
        [f"a {age} {who} with {of} hat" for age in ("old", "young", "tall") for who, of in people]
    )
    assert [len(level) for level in groups] == [1, 2, 6]
    assert groups[1] == ((0, 2, 4), (1, 3, 5))


def test_words_that_follow_from_others_are_no_attribute():
    groups = attribute_groups(
        [f"a portrait of {age} {who}" for age in ("a tall", "an old") for who in ("man", "woman")]
    )
    assert [len(level) for level in groups] == [1, 2, 4]


def test_prompts_of_different_lengths_are_aligned_by_what_they_have_in_common():
    people = ("a girl", "an adult woman", "an older man")
    groups = attribute_groups([f"{who} in {tone} red" for who in people for tone in ("dark", "light")])
    assert [len(level) for level in groups] == [1, 2, 6]
    assert attribute_groups(["x"]) == [((0,),)]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(list("abcde")), min_size=1, max_size=5).map(" ".join),
    st.integers(1, 6),
    st.randoms(),
)
def test_groups_always_partition_and_refine(stem: str, n: int, random):
    words = ["a", "b", "ab c", "x y", "z"]
    candidates = sorted({f"{random.choice(words)} {stem} {random.choice(words)}" for _ in range(n)})
    levels = attribute_groups(candidates)
    for level in levels:
        assert sorted(i for group in level for i in group) == list(range(len(candidates)))
    for coarse, fine in itertools.pairwise(levels):
        assert all(any(set(f) <= set(c) for c in coarse) for f in fine)
    assert levels[-1] == tuple((i,) for i in range(len(candidates)))


def test_the_pivot_depends_on_the_set_alone():
    candidates = ["a man", "a woman", "a child"]
    assert candidates[pivot_of(candidates)] == list(reversed(candidates))[-1 - pivot_of(candidates)]
    assert {pivot_of([f"{i} man", f"{i} woman"]) for i in range(20)} == {0, 1}


def test_a_row_without_features_to_run_on_runs_whole():
    plan = build_plan(request(), [GuidanceFrom(3), DeepCache(2, ())])
    first, later = plan.steps[3], plan.steps[4]
    whole = [row for p in first.passes if p.part.depth is None for row in p.rows]
    assert {row.branch for row in whole} == {Branch.UNCONDITIONAL}
    assert {str(p.part) for p in later.passes} == {"shallow-2"}


def test_rows_that_share_a_pivot_need_room_beside_it():
    with pytest.raises(InputError, match="passes of 2 or more"):
        build_plan(request(), [PublishedReuse(2)], max_rows=1)
    assert build_plan(request(), [PublishedReuse(0)], max_rows=1).widest == 1


def test_a_candidate_left_out_is_refused():
    class Dropping:
        def apply(self, table, candidates):
            return tuple(cells[:-1] for cells in table)

    with pytest.raises(InputError, match="a candidate has no conditional prediction"):
        build_plan(replace(request(), guidance=1.0, candidates=("a",)), [Dropping()])
