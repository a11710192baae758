"""The calls of `inference.GRPCInferenceService`, answered by those of `VaeService`.

Nothing is caught here but what becomes the `error_message` of a stream; the rest becomes a status in the interceptor.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, NoReturn

import grpc

import latentry
from serving import call
from serving.api.servicer import VaeServicer
from serving.catalog import Catalog
from serving.errors import Conflict, Internal, InvalidArgument, ModelNotFound, ServiceError
from serving.inference import grpc_service_pb2 as oip
from serving.inference import grpc_service_pb2_grpc
from serving.oip import answers, descriptions, faces, questions, repository
from serving.oip.errors import Unimplemented, renamed
from serving.oip.faces import Face
from serving.oip.statistics import Statistics
from serving.reloader import Reloader

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
EXTENSIONS = ("model_configuration", "model_repository", "parameters", "statistics")

_AHEAD = 4  # requests of one stream that are answered at a time; a caller that does not read makes no more work


class OipServicer(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """Shows `catalog`, whose models `vae` runs. `is_ready`: whether calls are taken. On the administration's port there
    is no `vae`, and so no inference, but a `reloader`; only with one does it load and unload."""

    def __init__(
        self,
        vae: VaeServicer | None,
        catalog: Catalog,
        is_ready: Callable[[], bool],
        statistics: Statistics,
        reloader: Reloader | None = None,
    ) -> None:
        self._vae = vae
        self._catalog = catalog
        self._is_ready = is_ready
        self._statistics = statistics
        self._reloader = reloader

    # ---- health and descriptions ----

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:  # noqa: N802
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:  # noqa: N802
        return oip.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:  # noqa: N802
        try:
            ready = self._face(request).model.up and self._is_ready()
        except ModelNotFound:  # as Triton: what is not there is not ready
            ready = False
        return oip.ModelReadyResponse(ready=ready)

    async def ServerMetadata(  # noqa: N802
        self, request: oip.ServerMetadataRequest, context: Context
    ) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(name="latentry", version=latentry.__version__, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Context) -> oip.ModelMetadataResponse:  # noqa: N802
        return descriptions.metadata(self._face(request), self._catalog)

    async def ModelConfig(self, request: oip.ModelConfigRequest, context: Context) -> oip.ModelConfigResponse:  # noqa: N802
        return oip.ModelConfigResponse(config=descriptions.configuration(self._face(request)))

    async def ModelStatistics(  # noqa: N802
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        if request.name:
            wanted = self._face(request)
            there = [face for face in faces.faces(self._catalog) if face.name == wanted.name]
            if request.version:
                there = [wanted]
        else:
            there = faces.faces(self._catalog)
        stats = [await self._statistics.message(face.name, face.version) for face in there]
        return oip.ModelStatisticsResponse(model_stats=stats)

    # ---- inference ----

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:  # noqa: N802
        return await self._answer(request, context)

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> AsyncGenerator[oip.ModelStreamInferResponse, None]:
        """Requests are answered in their order; one that fails with its error, and the stream goes on."""
        answering: asyncio.Queue[asyncio.Task[oip.ModelStreamInferResponse] | None] = asyncio.Queue()
        room = asyncio.Semaphore(_AHEAD)

        async def read() -> None:
            try:
                async for request in requests:
                    await room.acquire()
                    answering.put_nowait(asyncio.ensure_future(self._answer_in_stream(request, context)))
            finally:
                answering.put_nowait(None)

        reader = asyncio.ensure_future(read())
        try:
            while (answer := await answering.get()) is not None:
                yield await answer
                room.release()
            await reader  # what went wrong with reading ends the stream
        finally:
            left = [reader, *(answering.get_nowait() for _ in range(answering.qsize()))]
            unfinished = [task for task in left if task is not None]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def _answer_in_stream(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelStreamInferResponse:
        stream = call.current()
        record = call.begin(stream.rpc)  # of this request alone, in this task
        for name in ("request_id", "identity", "peer", "priority", "deadline"):
            setattr(record, name, getattr(stream, name))
        refusal: ServiceError
        try:
            return oip.ModelStreamInferResponse(infer_response=await self._answer(request, context))
        except ServiceError as error:
            refusal = error
        except Exception:
            log.exception("a request of a stream failed")
            refusal = Internal()
        finally:
            stream.items += record.items
            stream.model, stream.version = record.model, record.version
        told = oip.ModelInferResponse(model_name=request.model_name, model_version=request.model_version, id=request.id)
        return oip.ModelStreamInferResponse(error_message=str(refusal), infer_response=told)

    async def _answer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:
        if self._vae is None:
            raise Conflict("this is the administration's port: inference is on the main one, for the role infer")
        face = faces.find(self._catalog, request.model_name, request.model_version)
        record = call.current()
        record.model, record.version = face.model.manifest.name, face.version
        with self._statistics.of(face.name, face.version).answering() as answer:
            question = await questions.read(request, face)
            if question.timeout_s is not None:
                ends = time.monotonic() + question.timeout_s
                record.deadline = ends if record.deadline is None else min(ends, record.deadline)
            try:
                reply = (await getattr(self._vae, question.rpc)(question.request, context)).to_message()
            except InvalidArgument as error:
                raise renamed(error, question.fields) from error
            response = answers.write(reply, question, face, request)
            answer.items, answer.seconds, answer.stages = answers.items(reply), record.seconds, record.stages
        return response

    # ---- the repository ----

    async def RepositoryIndex(  # noqa: N802
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        on_disk = {} if self._reloader is None else await repository.on_disk(self._reloader)
        return oip.RepositoryIndexResponse(models=repository.index(self._catalog, on_disk, request.ready))

    async def RepositoryModelLoad(  # noqa: N802
        self, request: oip.RepositoryModelLoadRequest, context: Context
    ) -> oip.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        await repository.load(request, self._administration())
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        await repository.unload(request, self._administration(), self._catalog)
        return oip.RepositoryModelUnloadResponse()

    # ---- what is not here ----

    async def _absent(self, request: object, context: Context) -> NoReturn:
        raise Unimplemented("shared memory, tracing and log settings cannot be had through this service")

    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _absent
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _absent
    TraceSetting = LogSettings = _absent

    def _face(self, request: Any) -> Face:
        return faces.find(self._catalog, request.name, request.version)

    def _administration(self) -> Reloader:
        if self._reloader is None:
            raise Conflict(
                "models are loaded and unloaded on the administration's port (--admin-port), not on this one"
            )
        return self._reloader


def _check_repository(name: str) -> None:
    if name:
        raise InvalidArgument("repository_name", repr(name[:64]), "none: there is one repository")
