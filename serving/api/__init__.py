"""The calls of `latentry.v1.VaeService`: messages become numbers and arrays, and these become messages again.

servicer ─ requests, codec ─ work ─ the model ─ codec, replies ─ servicer
"""
