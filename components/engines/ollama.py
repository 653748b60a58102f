"""Ollama: a fixed number of slots, GGUF models; no metric of its queue (ollama#3144)."""

from .service import EngineService


class OllamaService(EngineService):
    """Ollama with one model, loaded before a pod is ready."""

    engine = "ollama"
    health = "/"
