#include <onnxruntime_cxx_api.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

int main(int, char** argv) {
  const std::string folder = argv[1], picture = argv[2], result = argv[3];
  Ort::Env env;
  Ort::Session encoder(env, (folder + "/encoder.onnx").c_str(), Ort::SessionOptions());
  Ort::Session decoder(env, (folder + "/decoder.onnx").c_str(), Ort::SessionOptions());
  std::vector<int64_t> shape = encoder.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
  shape[0] = 1;
  const size_t size = shape[1] * shape[2] * shape[3];
  std::ifstream file(picture, std::ios::binary);
  std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
  auto* pixels = reinterpret_cast<uint8_t*>(bytes.data() + bytes.size() - size);  // such a file ends in its pixels
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto image = Ort::Value::CreateTensor<uint8_t>(memory, pixels, size, shape.data(), shape.size());
  const char *images[] = {"images"}, *mean[] = {"mean"}, *latents[] = {"latents"};
  auto encoded = encoder.Run(Ort::RunOptions(), images, &image, 1, mean, 1);
  auto decoded = decoder.Run(Ort::RunOptions(), latents, encoded.data(), 1, images, 1);
  std::ofstream(result, std::ios::binary)
      << (shape[3] == 1 ? "P5 " : "P6 ") << shape[2] << " " << shape[1] << " 255\n"
      << std::string(reinterpret_cast<const char*>(decoded[0].GetTensorData<uint8_t>()), size);
  const float* z = encoded[0].GetTensorData<float>();
  const size_t latent_dim = encoded[0].GetTensorTypeAndShapeInfo().GetElementCount();
  for (size_t i = 0; i < latent_dim; ++i) std::cout << z[i] << (i + 1 < latent_dim ? " " : "\n");
}
