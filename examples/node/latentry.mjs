// A client of Latentry for Node: promises and async iterators over @grpc/grpc-js, with the limits, deadlines, metadata
// and errors that the API wants. Copy it, together with details.proto and the repository's protos/latentry.
//
// The .proto files are read when it starts (@grpc/proto-loader): nothing is generated, and fields are called as in the
// files, whose comments are the reference. TypeScript gets its types from the same files (proto-loader-gen-types).
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const PROTOS = ["protos", "../../protos"].map(here).find(existsSync); // beside this file, or in Latentry's repository

// 64 bit integers come as strings and may be given as strings or BigInts: a number holds 53 bits, a seed 64.
// `json` unpacks the google.protobuf.Any of error details.
const definitions = loader.loadSync(["latentry/v1/vae.proto", here("details.proto")], {
  includeDirs: [PROTOS],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
  oneofs: true,
  json: true,
});
const { VaeService } = grpc.loadPackageDefinition(definitions).latentry.v1;
const LOOPBACK = /^(localhost|127\.0\.0\.1|\[::1\]):/;

/** A call that the server did not answer: `code` is the gRPC status, `fields` say what was wrong with the request. */
export class LatentryError extends Error {
  constructor({ code, details, metadata }) {
    const [trailer] = metadata?.get("grpc-status-details-bin") ?? [];
    const more = trailer ? definitions["google.rpc.Status"].deserialize(trailer).details : [];
    const detail = (name) => more.find((one) => one["@type"].endsWith(`/google.rpc.${name}`));
    super(`${grpc.status[code]}: ${details}`);
    this.code = grpc.status[code];
    this.fields = detail("BadRequest")?.field_violations ?? []; // [{ field, description }]
    const delay = detail("RetryInfo")?.retry_delay;
    this.retryAfterMs = delay && Number(delay.seconds) * 1e3 + delay.nanos / 1e6; // undefined: trying again is no use
    this.about = detail("ErrorInfo")?.metadata ?? {}; // such as { model: "faces" }
  }
}

/** One model of a server. Make it with `Latentry.connect`, and `close` it. */
export class Latentry {
  /**
   * Asks the server at `target` ("host:port") about a model, and opens a channel with its limits: gRPC's own would
   * refuse replies of more than 4 MiB.
   *
   * `model` is a ModelSelector, by default the server's default model. Calls fail after `timeoutMs`; those of the
   * priority "background" run when no others wait. `tls` is true, or what grpc.credentials.createSsl makes; a `token`
   * goes over TLS or to this machine only.
   */
  static async connect(target, { model = {}, timeoutMs = 60_000, priority, token, tls = false } = {}) {
    if (token && !tls && !LOOPBACK.test(target)) throw new TypeError("token: got no TLS, wanted it with a token");
    const credentials = tls === true ? grpc.credentials.createSsl() : tls || grpc.credentials.createInsecure();
    const metadata = new grpc.Metadata();
    if (priority) metadata.set("latentry-priority", priority);
    if (token) metadata.set("authorization", `Bearer ${token}`);
    const open = (options) => new Latentry(new VaeService(target, credentials, options), model, metadata, timeoutMs);

    const first = open({});
    try {
      const { model: info } = await first.call("GetModel", {});
      const most = Number(info.limits.max_message_bytes);
      const opened = open({ "grpc.max_receive_message_length": most, "grpc.max_send_message_length": most });
      return Object.assign(opened, { info });
    } finally {
      first.close();
    }
  }

  constructor(stub, model, metadata, timeoutMs) {
    Object.assign(this, { stub, model, metadata, timeoutMs });
  }

  /** A call with one reply, such as call("Sample", { count: 4 }); fields as in vae.proto, bytes as Buffers. */
  call(rpc, request) {
    return new Promise((resolve, reject) => {
      const done = (error, reply) => (error ? reject(new LatentryError(error)) : resolve(reply));
      this.stub[rpc]({ model: this.model, ...request }, this.metadata, this.#options(), done);
    });
  }

  /**
   * A call whose reply comes in parts, such as stream("StreamSample", "sample", { count: 1000 }); `rest` are the fields
   * beside that message. The server makes parts no faster than they are read; leaving the loop cancels the call.
   */
  async *stream(rpc, field, request, rest = {}) {
    const message = { [field]: { model: this.model, ...request }, ...rest };
    const parts = this.stub[rpc](message, this.metadata, this.#options());
    try {
      yield* parts;
    } catch (error) {
      throw error.metadata ? new LatentryError(error) : error;
    } finally {
      parts.cancel();
    }
  }

  close() {
    this.stub.close();
  }

  #options() {
    return { deadline: Date.now() + this.timeoutMs };
  }
}

/** A float32 tensor's numbers. The wire is little-endian, as are the processors that Node runs on. */
export function floats({ data }) {
  return new Float32Array(new Uint8Array(data).buffer); // a copy: the view of gRPC's buffer need not be aligned
}

/** A float32 tensor of `rows`, arrays of equal length. */
export function tensor(rows) {
  const data = Buffer.from(Float32Array.from(rows.flatMap((row) => [...row])).buffer);
  return { dtype: "DATA_TYPE_FLOAT32", shape: [rows.length, rows[0].length], data };
}
