from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResultCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUCCESS: _ClassVar[ResultCode]
    UNKNOWN: _ClassVar[ResultCode]
    CONN_PROCESS_NOT_ALIVE: _ClassVar[ResultCode]
    REQUIRED_PARAMS_MISSED: _ClassVar[ResultCode]
    PARAMS_TYPE_ERROR: _ClassVar[ResultCode]
    PERMISSION_DENY: _ClassVar[ResultCode]

class TimerType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KEEPALIVE: _ClassVar[TimerType]

class SocketType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TCP: _ClassVar[SocketType]
    SSL: _ClassVar[SocketType]
    UDP: _ClassVar[SocketType]
    DTLS: _ClassVar[SocketType]
SUCCESS: ResultCode
UNKNOWN: ResultCode
CONN_PROCESS_NOT_ALIVE: ResultCode
REQUIRED_PARAMS_MISSED: ResultCode
PARAMS_TYPE_ERROR: ResultCode
PERMISSION_DENY: ResultCode
KEEPALIVE: TimerType
TCP: SocketType
SSL: SocketType
UDP: SocketType
DTLS: SocketType

class EmptySuccess(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CodeResponse(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: ResultCode
    message: str
    def __init__(self, code: _Optional[_Union[ResultCode, str]] = ..., message: _Optional[str] = ...) -> None: ...

class SendBytesRequest(_message.Message):
    __slots__ = ("conn", "bytes")
    CONN_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    conn: str
    bytes: bytes
    def __init__(self, conn: _Optional[str] = ..., bytes: _Optional[bytes] = ...) -> None: ...

class CloseSocketRequest(_message.Message):
    __slots__ = ("conn",)
    CONN_FIELD_NUMBER: _ClassVar[int]
    conn: str
    def __init__(self, conn: _Optional[str] = ...) -> None: ...

class AuthenticateRequest(_message.Message):
    __slots__ = ("conn", "clientinfo", "password")
    CONN_FIELD_NUMBER: _ClassVar[int]
    CLIENTINFO_FIELD_NUMBER: _ClassVar[int]
    PASSWORD_FIELD_NUMBER: _ClassVar[int]
    conn: str
    clientinfo: ClientInfo
    password: str
    def __init__(self, conn: _Optional[str] = ..., clientinfo: _Optional[_Union[ClientInfo, _Mapping]] = ..., password: _Optional[str] = ...) -> None: ...

class TimerRequest(_message.Message):
    __slots__ = ("conn", "type", "interval")
    CONN_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    conn: str
    type: TimerType
    interval: int
    def __init__(self, conn: _Optional[str] = ..., type: _Optional[_Union[TimerType, str]] = ..., interval: _Optional[int] = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("conn", "topic", "qos", "payload")
    CONN_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    QOS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    conn: str
    topic: str
    qos: int
    payload: bytes
    def __init__(self, conn: _Optional[str] = ..., topic: _Optional[str] = ..., qos: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class RawPublishRequest(_message.Message):
    __slots__ = ("topic", "qos", "payload")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    QOS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    topic: str
    qos: int
    payload: bytes
    def __init__(self, topic: _Optional[str] = ..., qos: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class SubscribeRequest(_message.Message):
    __slots__ = ("conn", "topic", "qos")
    CONN_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    QOS_FIELD_NUMBER: _ClassVar[int]
    conn: str
    topic: str
    qos: int
    def __init__(self, conn: _Optional[str] = ..., topic: _Optional[str] = ..., qos: _Optional[int] = ...) -> None: ...

class UnsubscribeRequest(_message.Message):
    __slots__ = ("conn", "topic")
    CONN_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    conn: str
    topic: str
    def __init__(self, conn: _Optional[str] = ..., topic: _Optional[str] = ...) -> None: ...

class SocketCreatedRequest(_message.Message):
    __slots__ = ("conn", "conninfo")
    CONN_FIELD_NUMBER: _ClassVar[int]
    CONNINFO_FIELD_NUMBER: _ClassVar[int]
    conn: str
    conninfo: ConnInfo
    def __init__(self, conn: _Optional[str] = ..., conninfo: _Optional[_Union[ConnInfo, _Mapping]] = ...) -> None: ...

class ReceivedBytesRequest(_message.Message):
    __slots__ = ("conn", "bytes")
    CONN_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    conn: str
    bytes: bytes
    def __init__(self, conn: _Optional[str] = ..., bytes: _Optional[bytes] = ...) -> None: ...

class TimerTimeoutRequest(_message.Message):
    __slots__ = ("conn", "type")
    CONN_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    conn: str
    type: TimerType
    def __init__(self, conn: _Optional[str] = ..., type: _Optional[_Union[TimerType, str]] = ...) -> None: ...

class SocketClosedRequest(_message.Message):
    __slots__ = ("conn", "reason")
    CONN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    conn: str
    reason: str
    def __init__(self, conn: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReceivedMessagesRequest(_message.Message):
    __slots__ = ("conn", "messages")
    CONN_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    conn: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, conn: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...

class ConnInfo(_message.Message):
    __slots__ = ("socktype", "peername", "sockname", "peercert")
    SOCKTYPE_FIELD_NUMBER: _ClassVar[int]
    PEERNAME_FIELD_NUMBER: _ClassVar[int]
    SOCKNAME_FIELD_NUMBER: _ClassVar[int]
    PEERCERT_FIELD_NUMBER: _ClassVar[int]
    socktype: SocketType
    peername: Address
    sockname: Address
    peercert: CertificateInfo
    def __init__(self, socktype: _Optional[_Union[SocketType, str]] = ..., peername: _Optional[_Union[Address, _Mapping]] = ..., sockname: _Optional[_Union[Address, _Mapping]] = ..., peercert: _Optional[_Union[CertificateInfo, _Mapping]] = ...) -> None: ...

class Address(_message.Message):
    __slots__ = ("host", "port")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class CertificateInfo(_message.Message):
    __slots__ = ("cn", "dn")
    CN_FIELD_NUMBER: _ClassVar[int]
    DN_FIELD_NUMBER: _ClassVar[int]
    cn: str
    dn: str
    def __init__(self, cn: _Optional[str] = ..., dn: _Optional[str] = ...) -> None: ...

class ClientInfo(_message.Message):
    __slots__ = ("proto_name", "proto_ver", "clientid", "username", "mountpoint")
    PROTO_NAME_FIELD_NUMBER: _ClassVar[int]
    PROTO_VER_FIELD_NUMBER: _ClassVar[int]
    CLIENTID_FIELD_NUMBER: _ClassVar[int]
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    MOUNTPOINT_FIELD_NUMBER: _ClassVar[int]
    proto_name: str
    proto_ver: str
    clientid: str
    username: str
    mountpoint: str
    def __init__(self, proto_name: _Optional[str] = ..., proto_ver: _Optional[str] = ..., clientid: _Optional[str] = ..., username: _Optional[str] = ..., mountpoint: _Optional[str] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("node", "id", "qos", "topic", "payload", "timestamp")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    QOS_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    node: str
    id: str
    qos: int
    topic: str
    payload: bytes
    timestamp: int
    def __init__(self, node: _Optional[str] = ..., id: _Optional[str] = ..., qos: _Optional[int] = ..., topic: _Optional[str] = ..., payload: _Optional[bytes] = ..., timestamp: _Optional[int] = ..., **kwargs) -> None: ...
