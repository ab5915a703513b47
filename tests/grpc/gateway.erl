%% The HTTP/2 of a real EMQX, in small: it calls the handler with gun and serves the adapter with cowboy, used as
%% EMQX's grpc-erl uses them, so that ours meets the code that it will meet in the field.
%%
%% `erl … -run gateway main SERVICE IDLE`: SERVICE of the handler is called; IDLE is the adapter's idle_timeout in
%% milliseconds. It prints its ports, reads the handler's port, and prints each call that failed; it ends with its
%% input.
-module(gateway).

-export([main/1, init/2]).

-define(CHANNELS, 3).

main([Service, Idle]) ->
    process_flag(trap_exit, true),
    %% Not as applications: those want ssl, which nobody uses here and Debian packs by itself.
    [{ok, _} = Module:start(normal, []) || Module <- [ranch_app, cowboy_app, gun_app]],
    ets:new(conns, [named_table, public]),
    Dispatch = cowboy_router:compile([{'_', [{"/:service/:method", ?MODULE, #{}}]}]),
    {ok, _} = cowboy:start_clear(adapter, #{socket_opts => [{ip, {127, 0, 0, 1}}, {port, 0}]}, #{
        env => #{dispatch => Dispatch},
        protocols => [http2],
        idle_timeout => list_to_integer(Idle),
        max_received_frame_rate => {100000, 1000}
    }),
    {ok, Listener} = gen_tcp:listen(0, [binary, {ip, {127, 0, 0, 1}}, {active, true}, {backlog, 1024}]),
    {ok, Own} = inet:port(Listener),
    io:format("ports ~b ~b~n", [Own, ranch:get_port(adapter)]),
    {ok, [Port], _} = io_lib:fread("~d", io:get_line("")),
    Channels = [spawn_link(fun() -> channel(Port) end) || _ <- lists:seq(1, ?CHANNELS)],
    spawn_link(fun() -> accept(Listener, list_to_tuple(Channels), "/emqx.exproto.v1." ++ Service) end),
    eof = io:get_line(""),
    halt(0, [{flush, false}]).

%% --- the adapter

init(Req0, State) ->
    Echoed = maps:without([<<"te">>, <<"content-type">>, <<"user-agent">>, <<"content-length">>],
                          cowboy_req:headers(Req0)),
    Req1 = cowboy_req:stream_reply(200, Echoed#{<<"content-type">> => <<"application/grpc">>}, Req0),
    {Body, Req} = body(Req1, <<>>),
    <<0, Size:32, Request:Size/binary>> = Body,
    ok = cowboy_req:stream_body(frame(method(cowboy_req:binding(method, Req), fields(Request))), nofin, Req),
    ok = cowboy_req:stream_trailers(#{<<"grpc-status">> => <<"0">>}, Req),
    {ok, Req, State}.

body(Req0, Before) ->
    case cowboy_req:read_body(Req0, #{length => 5}) of
        {ok, Data, Req} -> {<<Before/binary, Data/binary>>, Req};
        {more, Data, Req} -> body(Req, <<Before/binary, Data/binary>>)
    end.

method(Name, #{1 := Conn} = Request) ->
    case {ets:lookup(conns, Conn), Name} of
        {[], _} -> <<8, 2>>;
        {[{_, Pid}], <<"Send">>} -> Pid ! {send, maps:get(2, Request, <<>>)}, <<>>;
        {[{_, Pid}], <<"Close">>} -> Pid ! close, <<>>;
        _ -> <<>>
    end.

%% --- a channel: grpc_client of grpc-erl

channel(Port) ->
    Options = #{protocols => [http2], http2_opts => #{keepalive => 50}},
    {ok, Gun} = case gun:open("127.0.0.1", Port, Options#{transport_opts => [{nodelay, true}]}) of
        {error, {options, _}} -> gun:open("127.0.0.1", Port, Options#{tcp_opts => [{nodelay, true}]});  % gun 2
        Opened -> Opened
    end,
    {ok, http2} = gun:await_up(Gun),
    channel(Gun, #{}).

channel(Gun, Calls) ->
    receive
        {call, Who, Path, Data} ->
            Ref = gun:post(Gun, Path, headers()),
            ok = gun:data(Gun, Ref, fin, frame(Data)),
            channel(Gun, Calls#{Ref => {Who, <<>>}});
        {open, Who, Path} ->
            Ref = gun:post(Gun, Path, headers()),
            Who ! {opened, Path, Ref},
            channel(Gun, Calls#{Ref => {Who, <<>>}});
        {data, Ref, Data} ->
            ok = gun:data(Gun, Ref, nofin, frame(Data)),
            channel(Gun, Calls);
        {gun_response, Gun, _, nofin, 200, _} ->
            channel(Gun, Calls);
        {gun_data, Gun, Ref, nofin, Data} ->
            #{Ref := {Who, Before}} = Calls,
            channel(Gun, Calls#{Ref => {Who, <<Before/binary, Data/binary>>}});
        {gun_trailers, Gun, Ref, Trailers} ->
            {{Who, Answer}, Left} = maps:take(Ref, Calls),
            Who ! {answer, {proplists:get_value(<<"grpc-status">>, Trailers), Answer}},
            channel(Gun, Left);
        {gun_error, Gun, {stop, {goaway, _, no_error, _}, _}} ->
            channel(Gun, Calls);
        {gun_error, Gun, Ref, _} when not is_map_key(Ref, Calls) ->  % a stream that was answered, but never ended
            channel(Gun, Calls);
        Down when element(1, Down) =:= gun_down ->  % gun 2 has one field less
            Reason = element(4, Down),
            [Who ! {answer, Reason} || {Who, _} <- maps:values(Calls)],
            gone(Reason);
        Other ->
            io:format("error channel ~p of ~p~n", [Other, maps:size(Calls)]),
            channel(Gun, Calls)
    end.

gone(Reason) ->
    receive {call, Who, _, _} -> Who ! {answer, Reason}, gone(Reason) end.

headers() ->
    [{<<"content-type">>, <<"application/grpc+proto">>},
     {<<"user-agent">>, <<"grpc-erlang/0.1.0">>},
     {<<"grpc-encoding">>, <<"identity">>},
     {<<"grpc-message-type">>, <<"emqx.exproto.v1.ReceivedBytesRequest">>},
     {<<"te">>, <<"trailers">>}].

%% --- connections

-record(conn, {socket, name, channels, service, number, queue = queue:new(), busy = false, streams = #{}}).

accept(Listener, Channels, Service) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Pid = spawn(fun() ->
        receive go -> ok end,
        Name = base64:encode(term_to_binary(self())),
        ets:insert(conns, {Name, self()}),
        Created = [field(1, Name), field(2, [field(2, address(inet:peername(Socket))),
                                             field(3, address(inet:sockname(Socket)))])],
        conn(event("OnSocketCreated", Created, #conn{
            socket = Socket, name = Name, channels = Channels, service = Service,
            number = erlang:unique_integer([positive])}))
    end),
    ok = gen_tcp:controlling_process(Socket, Pid),
    Pid ! go,
    accept(Listener, Channels, Service).

conn(#conn{socket = Socket, name = Name} = Conn) ->
    receive
        {tcp, Socket, Data} ->
            conn(event("OnReceivedBytes", [field(1, Name), field(2, Data)], Conn));
        {tcp_closed, Socket} ->
            closed("{shutdown,tcp_closed}", Conn);
        {send, Data} ->
            gen_tcp:send(Socket, Data),
            conn(Conn);
        close ->
            gen_tcp:close(Socket),
            closed("{shutdown,normal}", Conn);
        {answer, {<<"0">>, <<0, 0:32>>}} ->
            conn(next(Conn#conn{busy = false}));
        {answer, Other} ->
            io:format("error ~p~n", [Other]),
            gen_tcp:close(Socket),
            ets:delete(conns, Name)
    end.

closed(Reason, #conn{name = Name} = Conn) ->
    ets:delete(conns, Name),
    ended(event("OnSocketClosed", [field(1, Name), field(2, Reason)], Conn)).

%% Events that were queued before are still called for.
ended(#conn{service = "/emqx.exproto.v1.ConnectionHandler"}) -> ok;
ended(#conn{busy = false}) -> ok;
ended(Conn) ->
    receive
        {answer, {<<"0">>, <<0, 0:32>>}} -> ended(next(Conn#conn{busy = false}));
        {answer, Other} -> io:format("error ~p~n", [Other])
    end.

event(Method, Data, #conn{service = "/emqx.exproto.v1.ConnectionHandler" = Service} = Conn) ->
    Path = Service ++ "/" ++ Method,
    Channel = channel_of(erlang:phash2(Method), Conn),
    case Conn#conn.streams of
        #{Path := Ref} -> Ref;
        _ ->
            Channel ! {open, self(), Path},
            receive {opened, Path, Ref} -> Ref end
    end,
    Channel ! {data, Ref, Data},
    Conn#conn{streams = (Conn#conn.streams)#{Path => Ref}};
event(Method, Data, Conn) ->
    next(Conn#conn{queue = queue:in({Conn#conn.service ++ "/" ++ Method, Data}, Conn#conn.queue)}).

next(#conn{busy = true} = Conn) -> Conn;
next(#conn{queue = Queue} = Conn) ->
    case queue:out(Queue) of
        {empty, _} -> Conn;
        {{value, {Path, Data}}, Left} ->
            channel_of(erlang:unique_integer([positive]), Conn) ! {call, self(), Path, Data},
            Conn#conn{queue = Left, busy = true}
    end.

channel_of(Number, #conn{channels = Channels, number = Own}) ->
    element(1 + (Number + Own) rem ?CHANNELS, Channels).

address({ok, {Host, Port}}) ->
    [field(1, inet:ntoa(Host)), <<16>>, varint(Port)].

%% --- protobuf and gRPC's frames

field(Number, Data) ->
    Text = iolist_to_binary(Data),
    [<<Number:5, 2:3>>, varint(byte_size(Text)), Text].

varint(Value) when Value < 128 -> <<Value>>;
varint(Value) -> <<1:1, Value:7, (varint(Value bsr 7))/binary>>.

fields(<<>>) -> #{};
fields(<<Number:5, 2:3, Rest/binary>>) ->
    {Size, Data} = unvarint(Rest, 0, 0),
    <<Value:Size/binary, Left/binary>> = Data,
    (fields(Left))#{Number => Value};
fields(<<Number:5, 0:3, Rest/binary>>) ->
    {Value, Left} = unvarint(Rest, 0, 0),
    (fields(Left))#{Number => Value}.

unvarint(<<0:1, Value:7, Rest/binary>>, Shift, Before) -> {Before bor (Value bsl Shift), Rest};
unvarint(<<1:1, Value:7, Rest/binary>>, Shift, Before) ->
    unvarint(Rest, Shift + 7, Before bor (Value bsl Shift)).

frame(Data) ->
    Message = iolist_to_binary(Data),
    <<0, (byte_size(Message)):32, Message/binary>>.
