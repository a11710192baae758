// What a Latentry server can do, in small: node sample.mjs [HOST:PORT] [FOLDER] [PICTURE.png]
//
// Writes pictures, and latents as raw float32 (numpy.fromfile reads them), into FOLDER. Without a picture it takes the
// first one that it samples. LATENTRY_TOKEN is sent if it is set.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { Latentry, LatentryError, floats, tensor } from "./latentry.mjs";

const [target = "localhost:50051", folder = "out/node", picture] = process.argv.slice(2);
const token = process.env.LATENTRY_TOKEN;
const keep = (name, data) => writeFileSync(join(folder, name), data);
const png = { format: "IMAGE_FORMAT_PNG" };

async function show(client) {
  const { model, image_shape, latent_dim, limits } = client.info;
  console.log(`${model.name} ${model.version}: ${image_shape.height}x${image_shape.width}, ${latent_dim} latents`);
  console.log(`up to ${limits.max_items} images a call, ${limits.max_message_bytes} bytes a message`);

  // Image k of a seed is the same for ever, here and in Python. Seeds have 64 bits: BigInts, not numbers.
  const sampled = await client.call("Sample", { count: 4, seed: 2n ** 64n - 1n, output: png });
  sampled.images.encoded.images.forEach((file, k) => keep(`sample-${k}.png`, file));
  keep("sample.f32", sampled.latents.data);
  console.log(`seed ${BigInt(sampled.seed)}, ${sampled.provenance?.provider}`);

  const file = picture ? readFileSync(picture) : sampled.images.encoded.images[0];
  const pictures = { encoded: { images: [file] } };
  const { mean } = await client.call("Encode", { images: pictures, resize: "RESIZE_CROP" });
  keep("encoded.f32", mean.data);

  // From the picture to the last sample and, in the animation, back again.
  const from = floats(mean);
  const to = floats(sampled.latents).slice(-latent_dim);
  const path = { latents: tensor([from, to]), steps: 6, path: "INTERPOLATION_PATH_SPHERICAL" };
  const parts = client.stream("StreamInterpolate", "interpolate", { ...path, output: png }, { chunk_items: 4 });
  for await (const { part, first_frame, frames } of parts) {
    const files = part.images.encoded.images;
    files.forEach((image, k) => keep(`frame-${Number(first_frame) + k}.png`, image));
    console.log(`frames ${first_frame} to ${Number(first_frame) + files.length - 1} of ${frames}`);
  }
  const gif = { format: "IMAGE_FORMAT_GIF", frame_ms: 100 };
  const animation = await client.call("Interpolate", { ...path, loop: true, easing: "EASING_IN_OUT", output: gif });
  keep("animation.gif", animation.images.encoded.images[0]);

  const again = await client.call("Reconstruct", { images: pictures, resize: "RESIZE_CROP", output: png });
  keep("reconstructed.png", again.images.encoded.images[0]);
  console.log(`squared error ${floats(again.squared_error)[0]}, KL ${floats(again.kl)[0]} nats`);

  // The picture, plus half of what makes the last sample differ from the first.
  const [plus, minus] = [to, floats(sampled.latents).slice(0, latent_dim)].map((latent) => tensor([latent]));
  const difference = { plus_latents: plus, minus_latents: minus, amount: 0.5 };
  const edited = await client.call("Edit", { latents: mean, differences: [difference], output: png });
  keep("edited.png", edited.images.encoded.images[0]);
  keep("edited.f32", edited.latents.data);

  const refused = await client.call("Sample", { count: 1, temperature: 99 }).catch((error) => error);
  explain(refused);
}

/** What went wrong, in the server's words. */
function explain(error) {
  if (!(error instanceof LatentryError)) throw error;
  console.error(error.message);
  for (const { field, description } of error.fields) console.error(`  field ${field}: ${description}`);
}

let client;
try {
  client = await Latentry.connect(target, { timeoutMs: 30_000, priority: "background", token });
  mkdirSync(folder, { recursive: true });
  await show(client);
} catch (error) {
  explain(error);
  process.exitCode = 1;
} finally {
  client?.close();
}
