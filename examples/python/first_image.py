"""Many images over asyncio: how soon the first is there, and how soon all are.

latentry serve                                              # in one terminal; a model without classes
python examples/python/first_image.py --count 500           # in another
"""

import argparse
import asyncio
import sys
import time

import latentry


async def main(server: str, count: int) -> None:
    async with latentry.AsyncClient(server) as client:
        await client.info()
        started, made = time.perf_counter(), 0
        async for part in client.stream_sample(count, seed=7):
            if not made:
                print(f"the first image after {(time.perf_counter() - started) * 1000:.0f} ms")
            made += len(part.images)
        print(f"all {made} after {(time.perf_counter() - started) * 1000:.0f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--count", type=int, default=500)
    args = parser.parse_args()
    if args.count < 1:
        parser.error(f"--count: got {args.count}, wanted 1 or more")
    try:
        asyncio.run(main(args.server, args.count))
    except latentry.LatentryError as error:
        sys.exit(f"first_image: {error}")
