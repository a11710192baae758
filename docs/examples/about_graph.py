import sys

import onnxruntime

about = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"]).get_modelmeta()
for key, value in sorted(about.custom_metadata_map.items()):
    print(f"{key}: {value}")
