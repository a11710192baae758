import { readFileSync, writeFileSync } from "node:fs";
import ort from "onnxruntime-node";

const [folder, picture, result] = process.argv.slice(2);
const encoder = await ort.InferenceSession.create(`${folder}/encoder.onnx`);
const decoder = await ort.InferenceSession.create(`${folder}/decoder.onnx`);
const [, height, width, channels] = encoder.inputMetadata[0].shape;
const pixels = readFileSync(picture).subarray(-height * width * channels); // such a file ends in its pixels
const images = new ort.Tensor("uint8", Uint8Array.from(pixels), [1, height, width, channels]);
const { mean } = await encoder.run({ images }, ["mean"]);
const decoded = await decoder.run({ latents: mean }, ["images"]);
const header = Buffer.from(`P${channels === 1 ? 5 : 6} ${width} ${height} 255\n`);
writeFileSync(result, Buffer.concat([header, decoded.images.data]));
console.log(...mean.data);
