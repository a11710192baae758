"""Every call of a Latentry server, and a picture of what it answers.

latentry serve                                              # in one terminal; a model without classes
python examples/python/every_call.py --out pictures         # in another: of new images
python examples/python/every_call.py --out pictures a.jpg b.jpg c.jpg    # or of your own, three or more
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

import latentry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    args = parser.parse_args()
    if args.images and len(args.images) < 3:
        parser.error(f"images: got {len(args.images)}, wanted three or more, or none")
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        with latentry.Client(args.server) as client:
            draw(client, list(args.images) or client.sample(3, seed=7).pillow(), args.out)
    except (latentry.LatentryError, OSError) as error:
        sys.exit(f"every_call: {error}")


def draw(client: latentry.Client, images: list[Path] | list[Image.Image], out: Path) -> None:
    """One picture a call; an image of another size than the model's is cropped."""
    info = client.info()
    shape = info.image_shape
    print(f"{info.model.name} {info.model.version}: {shape.height}x{shape.width}, {info.latent_dim} latents")
    print("models here:", ", ".join(each.model.name for each in client.models()))

    posterior = client.encode(images, resize="crop")
    client.decode(posterior.mean).save(out / "decode.png", scale=4)

    samples = client.sample(64, seed=7, truncation=2.0)
    samples.save(out / "sample.png")
    print(f"sample: by {samples.model.digest[:12]} in {samples.provenance.timings.total_s * 1000:.0f} ms")

    made = 0
    for part in client.stream_sample(200, seed=7):
        made += len(part.images)
    print(f"stream_sample: {made} images")

    client.interpolate(images, steps=24, path="spherical", loop=True, resize="crop").save(out / "walk.gif", scale=4)
    made = sum(len(part.images) for part in client.stream_interpolate(posterior.mean, steps=100))
    print(f"stream_interpolate: {made} images")

    seen = client.reconstruct(images, resize="crop")
    seen.save(out / "reconstruct.png", scale=4)
    print("reconstruct: squared errors", [round(float(error), 4) for error in seen.squared_error])

    a, b, c = posterior.mean[:3]
    client.edit([a], minus=[b], plus=[c]).save(out / "edit.png", scale=4)
    for attribute in info.attributes:
        amounts = {attribute.name: attribute.limit}
        client.edit([a], attributes=amounts).save(out / f"edit_{attribute.name.replace(' ', '_')}.png", scale=4)

    client.neighbours(a, grid=(5, 7), spacing=1.0, seed=1).save(out / "neighbours.png", columns=7)
    client.neighbours(a, walk=48, seed=1).save(out / "wander.webp", scale=4)
    print("pictures in", out)


if __name__ == "__main__":
    main()
