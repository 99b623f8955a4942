"""CKKS through TenSEAL: the time of the operations that layers are made of, and HE-Diffusion's scheduler updates.

    PYTHON he.py ops RESULT.json          time one multiplication by a plaintext, one addition, one rotation
    PYTHON he.py steps                    a client and a server over stdin and stdout, one scheduler update a message

In an environment of its own (`make crypto`); no import of this project. `steps`: the first line read is JSON, `shape`;
then, for each update, a line `a` and two float32 arrays of that shape, latents and what the server knows in the clear,
are read. The latents are encrypted, the server's part a*ct + plain is done on the ciphertext (HE-Diffusion, as its code
does it), the result is decrypted and written back as float32, after a line with the seconds of the three parts.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tenseal
from tenseal import sealapi

RING, SCALE_BITS, PRIMES = 8192, 26, (31, 26, 26, 26, 26, 26, 31)  # 192 bits of modulus: 128-bit security allows 218
RUNS = 30


def median_s(function: Callable[[], Any]) -> float:
    taken = []
    for _ in range(RUNS):
        started = time.perf_counter()
        function()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def operations() -> dict[str, Any]:
    """Seconds of each at the top of the modulus chain, where a fresh ciphertext is: they are cheaper further down."""
    parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(RING)
    parameters.set_coeff_modulus(sealapi.CoeffModulus.Create(RING, list(PRIMES)))
    context = sealapi.SEALContext(parameters, True, sealapi.SEC_LEVEL_TYPE.TC128)
    keys = sealapi.KeyGenerator(context)
    public, galois = sealapi.PublicKey(), sealapi.GaloisKeys()
    keys.create_public_key(public)
    keys.create_galois_keys(galois)
    encoder, evaluator = sealapi.CKKSEncoder(context), sealapi.Evaluator(context)
    encryptor, slots = sealapi.Encryptor(context, public), RING // 2
    rng, scale = np.random.default_rng(0), 2.0**SCALE_BITS
    plain, other = sealapi.Plaintext(), sealapi.Plaintext()
    values, weights = rng.standard_normal(slots), rng.standard_normal(slots)
    encoder.encode(values.tolist(), scale, plain)
    encoder.encode(weights.tolist(), scale, other)
    a, out = sealapi.Ciphertext(), sealapi.Ciphertext()
    encryptor.encrypt(plain, a)
    product, rotated = sealapi.Ciphertext(), sealapi.Ciphertext()
    evaluator.multiply_plain(a, other, product)
    evaluator.rescale_to_next_inplace(product)
    evaluator.rotate_vector(a, 1, galois, rotated)
    decryptor = sealapi.Decryptor(context, keys.secret_key())
    errors = {}
    checks = {"multiply_plain": (product, values * weights), "rotate": (rotated, np.roll(values, -1))}
    for name, (ciphertext, wanted) in checks.items():
        decrypted = sealapi.Plaintext()
        decryptor.decrypt(ciphertext, decrypted)
        errors[name] = float(np.abs(np.array(encoder.decode_double(decrypted)) - wanted).max())
    return {
        "tenseal": tenseal.__version__, "ring": RING, "scale_bits": SCALE_BITS, "primes": PRIMES, "slots": slots,
        "multiply_plain_s": median_s(lambda: evaluator.multiply_plain(a, other, out)),
        "add_s": median_s(lambda: evaluator.add(a, a, out)),
        "rotate_s": median_s(lambda: evaluator.rotate_vector(a, 1, galois, out)),
        "largest_error": errors,
    }  # fmt: skip


def steps() -> None:
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, RING, coeff_mod_bit_sizes=list(PRIMES))
    context.global_scale = 2**SCALE_BITS
    read, write = sys.stdin.buffer, sys.stdout.buffer
    shape = tuple(json.loads(read.readline())["shape"])
    count, slots = int(np.prod(shape)), RING // 2
    while line := read.readline():
        a = float(line)
        x, plain = (np.frombuffer(read.read(4 * count), np.float32) for _ in range(2))
        started = time.perf_counter()
        parts = [tenseal.ckks_vector(context, x[i : i + slots].tolist()) for i in range(0, count, slots)]
        sent = sum(len(p.serialize()) for p in parts)
        encrypted = time.perf_counter()
        pieces = [plain[i : i + slots] for i in range(0, count, slots)]
        parts = [p * a + piece.tolist() for p, piece in zip(parts, pieces, strict=True)]
        updated = time.perf_counter()
        after = np.concatenate([np.array(p.decrypt(), np.float32) for p in parts])
        ended = time.perf_counter()
        said = {"encrypt_s": encrypted - started, "update_s": updated - encrypted, "decrypt_s": ended - updated}
        write.write((json.dumps(said | {"ciphertext_bytes": sent}) + "\n").encode() + after.tobytes())
        write.flush()


if __name__ == "__main__":
    if sys.argv[1] == "ops":
        Path(sys.argv[2]).write_text(json.dumps(operations()))
    else:
        steps()
