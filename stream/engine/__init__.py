"""The engine: Kafka, Redis, processes, configuration. The science rooms know nothing of it.

Nothing is imported here, so that a command pays only for what it uses. By need:

==================  =================================================================================================
config              ``Settings``, ``load_settings``: the one place that reads the environment
embedded            ``services``, ``located``: broker and Redis by address, found running, or started
topics              ``topics.yaml`` checked, compared with a broker, applied
kafka               clients, messages, errors in our families, reading a topic to its end
state, ledger       marks in Redis; the latency ledger in headers
pixel_worker        consume-process-produce in a transaction, the science injected
emit                alerts out, each exactly once
ingest_service      packets in, each once
deadletters         what was given up, and trying it again
agents, stages      the record stages as Faust agents, and what each does with a message
workers, supervise  every kind of worker as a process; keeping processes alive
heartbeat, logs     (and ``metrics``) who is alive, what happened, how fast
==================  =================================================================================================
"""
