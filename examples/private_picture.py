"""One private picture through the Python API.

obclip serve &                          # the cloud; on a machine with a GPU, behind https
python examples/private_picture.py "noto style emoji of a woman cook with medium skin tone" picture.png
"""

import sys

from obclip.edge import Bundle, Client, ObclipError, PrivacyError, generate


def main(prompt: str, out: str, cloud: str = "http://127.0.0.1:8250") -> int:
    bundle = Bundle.open("emoji")  # a pair's name, or the folder that `obclip export` wrote
    try:
        with Client(cloud) as client:
            result = generate(prompt, bundle=bundle, client=client, progress=show)
    except PrivacyError as error:
        print(f"nothing was sent: {error}", file=sys.stderr)
        return error.exit_code
    except ObclipError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    result.save(out)  # the prompt is not in the file; with_prompt=True puts it there
    print(f"{out}: one of {len(result.job.candidates.prompts)} candidates, seed {result.seed}")
    return 0


def show(phase: str, done: int, of: int) -> None:
    print(f"\r{phase}: {done}/{of}", end="\n" if done == of else "", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
