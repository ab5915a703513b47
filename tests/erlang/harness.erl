%% The broker's side of the port, as EMQX 4.2's exproto plays it, for tests that speak as devices.
%%
%% Python drives it over a socket of Erlang terms: {Ref, Command} is answered by {reply, Ref, Result}, and what
%% happens comes as {event, Owner, What}. A listener is a process that owns the port to a driver and starts it
%% again when it dies; a connection is a process of its own, with the rules measured on the real broker:
%% one callback at a time, casts handled after it has returned, and nobody validates: a wrong type is a crash.
%%
%% What is sent to the process that owns the port, and is nothing that it knows, it passes on to the driver.
%%
%% It is as unkind as the broker: terms that Python has no type for come wrapped; closing a UDP peer closes the
%% socket of all; a hook that misses a key is skipped, and the default is to allow; a subscription under
%% another id than the first kills the connection; "discard" is an unexpected call.
-module(harness).

-export([main/1]).

-record(listener, {
    id, port, options, control, subs,
    module,               % the callback module
    next = 1,             % the number of the next call
    sent = #{},           % calls that wait for the driver's answer: number => {Pid, Ref}
    calls = #{},          % calls by the driver: number => true
    called = []           % what it has called
}).

-record(conn, {
    server,               % of a UDP listener
    dev, listener, subs, control, info, socktype, state = undefined,
    client = #{username => undefined, mountpoint => undefined},
    registered = false
}).

-define(RESTART, 100).        % milliseconds between two starts of a driver
-define(ANSWER, 60000).       % milliseconds until a callback that never answers is given up
-define(SEGMENT, 1460).       % bytes of a call of `received`
-define(DATAGRAM, 65507).     % bytes that a datagram can have
-define(DRAIN, 100).          % messages that join the first of a `deliver`

main([Port]) ->
    process_flag(trap_exit, true),
    [ets:new(Table, [Type, public, named_table])
     || {Table, Type} <- [{emqx_submon, set}, {emqx_subid, bag}, {emqx_channel, bag}, {emqx_channel_conn, bag}]],
    {ok, Socket} = gen_tcp:connect("127.0.0.1", list_to_integer(Port), [binary, {packet, 4}, {nodelay, true}]),
    control(Socket, #{}).

%% --- the socket to Python

control(Socket, Known) ->
    receive
        {tcp, Socket, Data} ->
            {Ref, Command} = binary_to_term(Data),
            {Reply, Now} =
                try
                    command(Command, Ref, Known)
                catch
                    Class:Reason:Trace -> {{failed, text({Class, Reason, Trace})}, Known}
                end,
            case Reply of
                later -> ok;
                _ -> tell(Socket, {reply, Ref, Reply})
            end,
            control(Socket, Now);
        {tcp_closed, Socket} ->
            halt(0, [{flush, false}]);
        {out, Term} ->
            tell(Socket, Term),
            control(Socket, Known);
        {'EXIT', Pid, Reason} when is_map_key({pid, Pid}, Known) ->
            #{{pid, Pid} := {Dev, Subs}} = Known,
            gone(Pid, Subs),
            [tell(Socket, {event, {dev, Dev}, {closed, <<"killed">>}}) || Reason =:= killed],
            [tell(Socket, {event, vm, {crash, text(Reason)}}) || Reason =/= killed, Reason =/= normal],
            control(Socket, maps:remove({pid, Pid}, Known));
        {'EXIT', _, normal} ->
            control(Socket, Known);
        {'EXIT', _, Reason} ->
            tell(Socket, {event, vm, {crash, text(Reason)}}),
            control(Socket, Known)
    end.

tell(Socket, Term) ->
    case gen_tcp:send(Socket, term_to_binary(Term)) of
        ok -> ok;
        {error, _} -> halt(0, [{flush, false}])
    end.

command({listen, Id, Options}, _, Known) ->
    Control = self(),
    Subs = ets:new(subs, [bag, public]),
    Turns = ets:new(turns, [set, public]),
    Server = spawn_link(fun() -> udp_server(Id, Control, #{}) end),
    ets:insert(Subs, [{owner, Id, Control, Turns}, {server, Server}]),
    Pid = spawn_link(fun() -> listener(Id, Options, Control, Subs) end),
    {ok, Known#{Id => {Pid, Subs}}};
command({unlisten, Id}, Ref, Known) ->
    case Known of
        #{Id := {Pid, Subs}} ->
            [exit(Conn, kill) || {conn, Conn} <- ets:lookup(Subs, conn)],
            Pid ! {stop, self(), Ref};
        _ -> self() ! {out, {reply, Ref, ok}}
    end,
    {later, maps:remove(Id, Known)};
command({connect, Id, Dev, Info}, _, Known) ->
    {ok, connected(Id, Dev, Info, Known)};
command({data, Dev, Data}, _, Known) ->
    #{{dev, Dev} := Pid, {info, Dev} := {Id, Info}} = Known,
    #{Id := {_, Subs}} = Known,
    case proplists:get_value(socktype, Info) of
        udp ->
            %% A datagram: refused once the socket of all is closed, and the peer's next process after its first.
            case ets:member(Subs, socket_closed) of
                true ->
                    {refused, Known};
                false ->
                    Now = case is_process_alive(Pid) of
                              true -> Known;
                              false -> connected(Id, Dev, Info, Known)
                          end,
                    maps:get({dev, Dev}, Now) ! {data, Data},
                    {ok, Now}
            end;
        _ ->
            Pid ! {data, Data},
            {ok, Known}
    end;
command({kick, Dev}, _, Known) ->
    #{{dev, Dev} := Pid} = Known,
    Pid ! {'$gen_call', {self(), make_ref()}, kick},
    {ok, Known};
command({mqtt, ClientId}, _, Known) ->
    %% A plain MQTT client: it tells others of its name to go, is announced, and leaves when it is told to.
    Control = self(),
    Topic = <<"$SYS/brokers/emqx@127.0.0.1/clients/", ClientId/binary, "/connected">>,
    Listeners = [Subs || {Id, {_, Subs}} <- maps:to_list(Known), is_integer(Id)],
    Pid = spawn(fun() ->
        receive go -> ok end,
        [route(Subs, message(emqx_mod_presence, 0, Topic, <<"{}">>)) || Subs <- Listeners],
        receive {'$gen_call', {From, Ref}, discard} -> From ! {Ref, ok} end,
        ets:delete_object(emqx_channel, {ClientId, self()}),
        Control ! {out, {event, mqtt, {discarded, ClientId}}}
    end),
    spawn(fun() ->
        discard(ClientId),
        ets:insert(emqx_channel, {ClientId, Pid}),
        ets:insert(emqx_channel_conn, {{ClientId, Pid}, emqx_connection}),
        Pid ! go
    end),
    {ok, Known};
command({kill, Dev}, _, Known) ->
    #{{dev, Dev} := Pid} = Known,
    exit(Pid, kill),
    {ok, Known};
command({mailbox, Dev}, _, Known) ->
    #{{dev, Dev} := Pid} = Known,
    {message_queue_len, Number} = process_info(Pid, message_queue_len),
    {Number, Known};
command({mail, Dev, Mail}, _, Known) ->
    #{{dev, Dev} := Pid} = Known,
    Pid ! Mail,
    {ok, Known};
command({pid, Dev}, _, Known) ->
    #{{dev, Dev} := Pid} = Known,
    {Pid, Known};
command({publish, Id, From, Topic, Payload, Qos}, _, Known) ->
    #{Id := {_, Subs}} = Known,
    route(Subs, message(From, Qos, Topic, Payload)),
    {ok, Known};
command({raw, Id, Data}, _, Known) ->
    #{Id := {Listener, _}} = Known,
    Listener ! {raw, Data},
    {ok, Known};
command({call, Id, Function, Arguments}, Ref, Known) ->
    #{Id := {Listener, _}} = Known,
    Control = self(),
    spawn_link(fun() -> Control ! {out, {reply, Ref, call(Listener, Function, Arguments)}} end),
    {later, Known};
command({called, Id}, Ref, Known) ->
    #{Id := {Listener, _}} = Known,
    Listener ! {called, self(), Ref},
    {later, Known};
command({os_pid, Id}, Ref, Known) ->
    #{Id := {Listener, _}} = Known,
    Listener ! {os_pid, self(), Ref},
    {later, Known};
command({loops, Id, Count, Size, Milliseconds}, Ref, Known) ->
    #{Id := {Listener, _}} = Known,
    Control = self(),
    spawn_link(fun() -> Control ! {out, {reply, Ref, loops(Listener, Count, Size, Milliseconds)}} end),
    {later, Known};
command({burst, Id, Count, Rounds}, Ref, Known) ->
    #{Id := {Listener, _}} = Known,
    Control = self(),
    spawn_link(fun() -> Control ! {out, {reply, Ref, burst(Listener, Count, Rounds)}} end),
    {later, Known};
command({dead_pid}, _, Known) ->
    {Pid, Monitor} = spawn_monitor(fun() -> ok end),
    receive {'DOWN', Monitor, process, Pid, _} -> ok end,
    {Pid, Known};
command({equal, Pairs}, _, Known) ->
    {[equal(One, Other) || {One, Other} <- Pairs], Known};
command({terms, Datas}, _, Known) ->
    {[{term_to_binary(Term), term_to_binary(Term, [compressed]), term_to_binary(Term, [{minor_version, 1}])}
        || Data <- Datas, Term <- [binary_to_term(Data)]], Known};
command({evaluate, Texts}, _, Known) ->
    {[evaluate(Text) || Text <- Texts], Known};
command({print, Datas}, _, Known) ->
    {[text(binary_to_term(Data)) || Data <- Datas], Known}.

connected(Id, Dev, Info, Known) ->
    #{Id := {Listener, Subs}} = Known,
    Control = self(),
    Pid = spawn_link(fun() -> connection(Dev, Listener, Subs, Control, Info) end),
    ets:insert(Subs, {conn, Pid}),
    Known#{{dev, Dev} => Pid, {info, Dev} => {Id, Info}, {pid, Pid} => {Dev, Subs}}.

%% What the broker's monitors see to when a process has gone.
gone(Pid, Subs) ->
    ets:match_delete(Subs, {Pid, '_', '_', '_', '_'}),
    ets:delete_object(Subs, {conn, Pid}),
    ets:delete(emqx_submon, Pid),
    ets:match_delete(emqx_channel, {'_', Pid}),
    ets:match_delete(emqx_channel_conn, {{'_', Pid}, '_'}).

%% The process of a UDP listener: a datagram that can't leave is dropped, and nothing else happens.
udp_server(Id, Control, Peers) ->
    receive
        {peer, Peer, Dev} ->
            udp_server(Id, Control, Peers#{Peer => Dev});
        {datagram, Peer, Data} ->
            case Peers of
                #{Peer := Dev} when byte_size(Data) =< ?DATAGRAM -> Control ! {out, {event, {dev, Dev}, {sent, Data}}};
                _ -> Control ! {out, {event, Id, {dropped, byte_size(Data)}}}
            end,
            udp_server(Id, Control, Peers)
    end.

equal(One, Other) ->
    try binary_to_term(One) =:= binary_to_term(Other) catch error:badarg -> badarg end.

evaluate(Text) ->
    {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Text)),
    {ok, Expressions} = erl_parse:parse_exprs(Tokens),
    {value, Value, _} = erl_eval:exprs(Expressions, []),
    term_to_binary(Value).

text(Term) -> unicode:characters_to_binary(io_lib:format("~0tp", [Term])).

%% --- a listener: the port to its driver

listener(Id, Options, Control, Subs) ->
    process_flag(trap_exit, true),
    #{module := Module} = Options,
    ets:insert(Subs, {listener, self()}),
    started(#listener{id = Id, options = Options, control = Control, subs = Subs,
                      module = binary_to_atom(Module, utf8)}).

started(L = #listener{id = Id, options = Options, control = Control}) ->
    #{executable := Executable, arguments := Arguments, env := Env, folder := Folder} = Options,
    Port = open_port({spawn_executable, Executable},
                     [{packet, 4}, binary, use_stdio, hide, exit_status, {args, Arguments}, {cd, Folder},
                      {env, [{unicode:characters_to_list(Name), unicode:characters_to_list(Value)}
                             || {Name, Value} <- Env]}]),
    Control ! {out, {event, Id, {up, os_pid(Port)}}},
    serve(L#listener{port = Port, next = 1, sent = #{}, calls = #{}}).

os_pid(Port) ->
    case erlang:port_info(Port, os_pid) of
        {os_pid, Pid} -> Pid;
        undefined -> undefined
    end.

serve(L = #listener{port = Port, sent = Sent}) ->
    receive
        {Port, {data, Data}} ->
            try binary_to_term(Data) of
                Term -> serve(heard(Term, L))
            catch
                error:badarg -> ended({invalid_protocol_data, Data}, L)
            end;
        {call, From, Ref, Function, Arguments} ->
            Number = case map_size(Sent) of 0 -> 1; _ -> L#listener.next end,
            Frame = term_to_binary({'C', Number, L#listener.module, Function, prepared(Arguments)}),
            port_command(Port, Frame),
            serve(L#listener{next = Number + 1, sent = Sent#{Number => {From, Ref}}});
        {raw, Data} ->
            port_command(Port, Data),
            serve(L);
        {done, Number, Frame} ->
            port_command(Port, Frame),
            serve(L#listener{calls = maps:remove(Number, L#listener.calls)});
        {os_pid, To, Ref} ->
            To ! {out, {reply, Ref, os_pid(Port)}},
            serve(L);
        {stop, To, Ref} ->
            case erlang:port_info(Port) of
                undefined -> ok;
                _ -> port_close(Port)
            end,
            To ! {out, {reply, Ref, ok}};
        {Port, {exit_status, Status}} ->
            ended({exit_status, Status}, L);
        {'EXIT', Port, Reason} ->
            ended({port_closed, Reason}, L);
        {called, To, Ref} ->
            To ! {out, {reply, Ref, L#listener.called}},
            serve(L);
        {'EXIT', _, _} ->
            serve(L);
        {deliver, Message} ->
            %% The broker names the filter, not the topic.
            [Filter | _] = [Each || {_, Each, _, _, _} <- ets:match_object(L#listener.subs, {self(), '_', '_', '_', '_'})],
            port_command(Port, term_to_binary({'M', prepared({deliver, Filter, Message})})),
            serve(L);
        Message ->
            port_command(Port, term_to_binary({'M', prepared(Message)})),
            serve(L)
    end.

ended(Reason, L = #listener{id = Id, port = Port, sent = Sent, control = Control}) ->
    catch port_close(Port),
    Control ! {out, {event, Id, {down, text(Reason)}}},
    maps:foreach(fun(_, {Pid, Ref}) -> Pid ! {answer, Ref, {error, Reason}} end, Sent),
    restarting(erlang:monotonic_time(millisecond) + ?RESTART, Reason, L).

%% What ends because its call went unanswered ends before there is a driver that could be told.
restarting(Until, Reason, L) ->
    receive
        {stop, To, Ref} -> To ! {out, {reply, Ref, ok}};
        {call, From, Ref, terminated, _} ->
            From ! {answer, Ref, {error, Reason}},
            restarting(Until, Reason, L)
    after max(0, Until - erlang:monotonic_time(millisecond)) ->
        started(L)
    end.

heard({r, Number, Result}, L) -> answered(Number, {ok, Result}, L);
heard({e, Number, Error}, L) -> answered(Number, {error, Error}, L);
heard({'M', To, Term}, L) when is_pid(To) -> To ! Term, L;
heard({'M', rex, {'$gen_cast', {cast, erlang, exit, [Pid, kill], _}}}, L) -> exit(Pid, kill), L;
heard({'C', Number, Module, Function, Arguments, 'L'}, L = #listener{port = Port, subs = Subs, options = Options}) ->
    port_command(Port, function(Number, Module, Function, Arguments, Subs, Options)),
    L;
heard({'C', Number, Module, Function, Arguments, Context}, L = #listener{calls = Calls, called = Called})
        when is_atom(Module), is_atom(Function), is_list(Arguments), is_atom(Context),
             not is_map_key(Number, Calls) ->
    #listener{subs = Subs, options = Options} = L,
    Listener = self(),
    spawn(fun() -> Listener ! {done, Number, function(Number, Module, Function, Arguments, Subs, Options)} end),
    L#listener{calls = Calls#{Number => true}, called = [{Module, Function} | Called]};
heard({'P', Text}, L = #listener{id = Id, control = Control}) ->
    case unicode:characters_to_binary(Text) of
        Binary when is_binary(Binary) -> Control ! {out, {event, Id, {log, Binary}}}, L;
        _ -> fault({unprintable, Text}, L)
    end;
heard(Message, L) ->
    fault({invalid_protocol_message, Message}, L).

%% What would end the real broker's process, and the driver with it.
fault(Reason, L = #listener{id = Id, control = Control, port = Port}) ->
    Control ! {out, {event, Id, {fault, text(Reason)}}},
    self() ! {Port, {exit_status, fault}},
    L.

answered(Number, Result, L = #listener{sent = Sent}) ->
    case maps:take(Number, Sent) of
        {{Pid, Ref}, Left} ->
            Pid ! {answer, Ref, Result},
            L#listener{sent = Left};
        error ->
            fault({answer_to_no_call, Number, Result}, L)
    end.

call(Listener, Function, Arguments) ->
    Ref = make_ref(),
    Listener ! {call, self(), Ref, Function, Arguments},
    receive
        {answer, Ref, Result} -> Result
    after ?ANSWER ->
        {error, no_answer}
    end.

%% --- what the driver may call

function(Number, Module, Function, Arguments, Subs, Options) ->
    Answer =
        try
            case Options of
                #{fails := true} -> {r, Number, {error, nothing_works}};
                _ -> {r, Number, prepared(apply_in(Module, Function, Arguments, Subs, Options))}
            end
        catch Class:Reason:Trace -> {e, Number, prepared({erlang, Class, Reason, Trace})}
        end,
    term_to_binary(Answer).

%% As erlport does with what Python has no type for.
prepared(Term) when is_pid(Term); is_atom(Term); is_binary(Term); is_number(Term) -> Term;
prepared([Item | Tail]) -> [prepared(Item) | prepared(Tail)];
prepared([]) -> [];
prepared(Term) when is_tuple(Term) -> list_to_tuple(prepared(tuple_to_list(Term)));
prepared(Term) ->
    <<131, Data/binary>> = term_to_binary(Term, [{minor_version, 1}]),
    {'$erlport.opaque', erlang, Data}.

-define(KEYS, [zone, protocol, peerhost, sockport, clientid, username, mountpoint, is_bridge, is_superuser]).

%% A plugin's hook, and what the broker makes of one that crashes: it is skipped.
hook(Fun, Client, Keys, Default) ->
    try
        [_ = maps:get(Key, Client) || Key <- Keys],
        Fun(Client)
    catch _:_ -> Default
    end.

password(#{crashing := true}, _) -> error(function_clause);
password(#{password := Password}, Client = #{password := Password}) ->
    {ok, #{auth_result => success, anonymous => false, is_superuser => maps:get(clientid, Client) =:= <<"root">>}};
password(#{password := _}, _) -> {error, not_authorized}.

apply_in(emqx_access_control, authenticate, [Client], Subs, Options) ->
    [{owner, Owner, Control, _}] = ets:lookup(Subs, owner),
    Control ! {out, {event, Owner, {authenticate, Client}}},
    #{zone := external, peerhost := Host, clientid := Id, username := Name, password := Password} = Client,
    true = is_tuple(Host) andalso is_binary(Id) andalso is_binary(Name) andalso is_binary(Password),
    Default = {ok, #{auth_result => success, anonymous => true}},
    case Options of
        #{authenticate := Answer} -> Answer;
        _ -> hook(fun(C) -> password(Options, C) end, Client, [password | ?KEYS], Default)
    end;
apply_in(emqx_access_control, check_acl, [Client, What, Topic], Subs, Options)
        when is_map(Client), is_binary(Topic), What =:= publish orelse What =:= subscribe ->
    [{owner, Owner, Control, _}] = ets:lookup(Subs, owner),
    Control ! {out, {event, Owner, {check_acl, Client}}},
    Rule = fun(_) -> case Topic of <<"denied/", _/binary>> -> deny; _ -> allow end end,
    case Options of
        #{check_acl := Answer} -> Answer;
        #{crashing := true} -> allow;
        _ -> hook(Rule, Client, ?KEYS, allow)
    end;
apply_in(emqx_hooks, run_fold, ['client.check_acl', Arguments, Default], Subs, Options) ->
    case Options of
        #{old := true} -> error(undef);
        #{crashing := true} -> Default;
        #{nobody_judges := true} -> Default;
        _ -> apply_in(emqx_access_control, check_acl, Arguments, Subs, Options)
    end;
apply_in(emqx_hooks, lookup, [Hook], _, #{crashing := true}) when Hook =:= 'client.authenticate'; Hook =:= 'client.check_acl' ->
    %% One that wouldn't have been called, and each form of a function.
    [{callback, {fun erlang:hd/1, []}, fun erlang:is_list/1, 0},
     {callback, fun (_, _) -> ok end, undefined, 0}, {callback, fun (_, _, _, _) -> ok end, undefined, 0}];
apply_in(emqx_hooks, lookup, ['client.connected'], _, _) ->
    [{callback, {emqx_mod_presence, on_client_connected, [[{qos, 0}]]}, undefined, 0}];
apply_in(emqx_hooks, lookup, [_], _, _) -> [];
apply_in(erlang, apply, [Fun, Arguments], _, _) when is_function(Fun) -> apply(Fun, Arguments);
apply_in(erlang, self, [], _, _) -> self();
apply_in(erlang, is_process_alive, [Pid], _, _) -> is_process_alive(Pid);
apply_in(erlang, exit, [Pid, kill], _, _) -> exit(Pid, kill);
apply_in(erlang, process_info, [Pid, dictionary], _, _) -> process_info(Pid, dictionary);
apply_in(ets, lookup, [emqx_submon, Key], _, _) -> ets:lookup(emqx_submon, Key);
apply_in(ets, insert, [Table, Row], _, _) when Table =:= emqx_submon; Table =:= emqx_subid -> ets:insert(Table, Row);
apply_in(ets, delete_object, [emqx_subid, Row], _, _) -> ets:delete_object(emqx_subid, Row);
apply_in(lists, foreach, [Log, Lines], Subs, _) when is_function(Log, 1) ->
    {module, logger} = erlang:fun_info(Log, module),
    {name, Level} = erlang:fun_info(Log, name),
    [{owner, Id, Control, _}] = ets:lookup(Subs, owner),
    [Control ! {out, {event, Id, {log, Level, Line}}} || Line <- Lines, is_list(unicode:characters_to_list(Line))],
    ok;
apply_in(lists, map, [Function, Arguments], Subs, Options) when is_function(Function, 1) ->
    {module, Module} = erlang:fun_info(Function, module),
    {name, Name} = erlang:fun_info(Function, name),
    [apply_in(Module, Name, [Argument], Subs, Options) || Argument <- Arguments];
apply_in(emqx_broker, subscribe, [Filter], Subs, _) ->
    {Group, Words} = parsed(Filter),
    ets:insert(Subs, {self(), Filter, Group, Words, 0}),
    ok;
apply_in(application, get_env, [emqx_exproto, listeners], _, #{listener := udp}) ->
    {ok, [{"devices", udp, {"0.0.0.0", 7993}, [{acceptors, 8}]}]};
apply_in(emqx_exproto_driver_mngr, lookup, ['devices:udp'], Subs, Options = #{listener := udp}) ->
    apply_in(emqx_exproto_driver_mngr, lookup, ['devices:tcp'], Subs, Options);
apply_in(esockd, listener, [{'devices:udp', {"0.0.0.0", 7993}}], Subs, _) ->
    [{server, Pid}] = ets:lookup(Subs, server),
    Pid;
apply_in(sys, get_state, [Pid], _, _) when is_pid(Pid) -> {state, 'devices:udp', hd(erlang:ports()), 7993};
apply_in(erlang, port_info, [Port], Subs, _) when is_port(Port) ->
    case ets:member(Subs, socket_closed) of
        true -> undefined;
        false -> [{name, "udp_inet"}]
    end;
apply_in(esockd, reopen, ['devices:udp', {"0.0.0.0", 7993}], Subs, _) ->
    [{owner, Id, Control, _}] = ets:lookup(Subs, owner),
    [exit(Pid, kill) || {conn, Pid} <- ets:lookup(Subs, conn)],
    ets:delete(Subs, socket_closed),
    Control ! {out, {event, Id, {socket_closed, false}}},
    {ok, self()};
apply_in(application, get_env, [emqx_exproto, listeners], _, _) ->
    {ok, [{"other", udp, {"0.0.0.0", 7994}, []}, {"devices", tcp, {"0.0.0.0", 7993}, [{acceptors, 8}]}]};
apply_in(emqx_exproto_driver_mngr, lookup, ['devices:tcp'], Subs, Options) ->
    [{listener, Pid}] = ets:lookup(Subs, listener),
    #{module := Module} = Options,
    {ok, #{name => 'devices:tcp', type => python3, pid => Pid, cbm => binary_to_atom(Module, utf8), opts => []}};
apply_in(emqx_exproto_driver_mngr, lookup, [_], _, _) -> {error, not_found};
apply_in(esockd, listener, [{'devices:tcp', {"0.0.0.0", 7993}}], Subs, _) ->
    [{listener, Pid}] = ets:lookup(Subs, listener),
    Pid;
apply_in(esockd_listener_sup, connection_sup, [Pid], _, _) when is_pid(Pid) -> Pid;
apply_in(supervisor, which_children, [_], Subs, _) ->
    [{undefined, Pid, worker, [emqx_exproto_conn]} || {conn, Pid} <- ets:lookup(Subs, conn)];
apply_in(emqx_cm, lookup_channels, [Id], _, _) when is_binary(Id) ->
    [Pid || {_, Pid} <- ets:lookup(emqx_channel, Id)];
apply_in(emqx_cm, get_chann_conn_mod, [Id, Pid], _, _) ->
    case ets:lookup(emqx_channel_conn, {Id, Pid}) of
        [{_, Module}] -> Module;
        [] -> undefined
    end;
apply_in(emqx_exproto_conn, info, [Pid], _, _) when is_pid(Pid) ->
    Monitor = monitor(process, Pid),
    Pid ! {'$gen_call', {self(), Monitor}, info},
    receive
        {Monitor, Info} -> demonitor(Monitor, [flush]), Info;
        {'DOWN', Monitor, process, _, Reason} -> exit({Reason, {gen_server, call, [Pid, info, infinity]}})
    end;
apply_in(erlang, process_info, [Pid, messages], _, _) -> process_info(Pid, messages);
apply_in(emqx_message, make, [From, Topic, Payload], _, _) when is_binary(Topic), is_binary(Payload) ->
    message(From, 0, Topic, Payload);
apply_in(emqx, publish, [Message], Subs, _) when element(1, Message) =:= message ->
    route(Subs, Message),
    [];
apply_in(emqx_exproto, send, [Pid, Data], _, _) when is_pid(Pid), is_binary(Data) ->
    cast(Pid, {send, Data});
apply_in(emqx_exproto, close, [Pid], _, _) when is_pid(Pid) ->
    cast(Pid, close);
apply_in(emqx_exproto, register, [Pid, Client], _, _) when is_pid(Pid) ->
    cast(Pid, {register, maps:merge(#{proto_name => undefined}, maps:from_list(Client))});
apply_in(emqx_exproto, publish, [Pid, Facts], _, _) when is_pid(Pid) ->
    #{qos := Qos, topic := Topic, payload := Payload} = maps:from_list(Facts),
    cast(Pid, {publish, message(undefined, Qos, Topic, Payload)});
apply_in(emqx_exproto, subscribe, [Pid, Topic, Qos], _, _) when is_binary(Topic), Qos >= 0, Qos =< 2 ->
    cast(Pid, {subscribe, Topic, Qos});
apply_in(emqx_exproto, unsubscribe, [Pid, Topic], _, _) when is_binary(Topic) ->
    cast(Pid, {unsubscribe, Topic}).

cast(Pid, Request) ->
    Pid ! {'$gen_cast', Request},
    ok.

%% --- the connection process

connection(Dev, Listener, Subs, Control, Facts) ->
    [{server, Server}] = ets:lookup(Subs, server),
    put('$ancestors', [Server, esockd_sup]),
    Server ! {peer, proplists:get_value(peername, Facts), Dev},
    Own = <<"exproto_client_", (list_to_binary(pid_to_list(self())))/binary>>,
    New = #conn{dev = Dev, listener = Listener, subs = Subs, control = Control,
                info = Facts, socktype = proplists:get_value(socktype, Facts)},
    C = New#conn{client = (New#conn.client)#{clientid => Own}},
    case callback(C, init, [self(), Facts]) of
        {ok, State} -> running(C#conn{state = State});
        Wrong -> told(C, {closed, text({init_channel_failed, Wrong})})
    end.

%% An `unknown` device's process is one from before the driver's start: it begins without init.
callback(#conn{info = [unknown | _]}, init, _) -> {ok, undefined};
callback(#conn{listener = Listener}, Function, Arguments) ->
    case call(Listener, Function, Arguments) of
        {ok, ok} -> ok;
        {ok, undefined} -> ok;
        {ok, {0, State}} -> {ok, State};
        {ok, {1, Reason}} -> {error, Reason};
        {ok, _} -> {error, unknown_return_format};
        {error, _} -> {error, unknown_return_format}
    end.

running(C) ->
    receive
        Mail ->
            case catch handle([Mail], C) of
                Now = #conn{} -> running(Now);
                {stop, Reason} -> terminate(Reason, C);
                {'EXIT', Reason} -> terminate(Reason, C)
            end
    end.

handle([], C) -> C;
handle([Mail | More], C) ->
    case mail(Mail, C) of
        {stop, Reason} -> {stop, Reason};
        {next, Also, Now} -> handle(More ++ Also, Now);
        Now -> handle(More, Now)
    end.

mail({data, Data}, C = #conn{socktype = Type}) when Type =:= udp; byte_size(Data) =< ?SEGMENT ->
    returned(callback(C, received, [self(), Data, C#conn.state]), C);
mail({data, <<Segment:?SEGMENT/binary, Rest/binary>>}, C) ->
    case returned(callback(C, received, [self(), Segment, C#conn.state]), C) of
        Now = #conn{} ->
            %% What the kernel has next is read when the casts so far are handled.
            self() ! {more, Rest},
            waiting_for_more(Now);
        Stop -> Stop
    end;
mail(hang_up, _) -> {stop, {shutdown, {sock_closed, tcp_closed}}};
mail({sock_error, Reason}, _) -> {stop, {shutdown, {sock_closed, Reason}}};
mail({shutdown, Reason}, _) -> {stop, {shutdown, Reason}};
mail({'$gen_call', {From, Ref}, kick}, _) ->
    From ! {Ref, ok},
    {stop, {shutdown, kicked}};
mail({'$gen_call', {From, Ref}, discard}, C) ->
    From ! {Ref, ok},
    told(C, {unexpected, discard}),
    C;
mail(stop_reading, C) ->
    put(reads, false),
    C;
mail({deliver, Message}, C) ->
    Batch = [facts(Each) || Each <- [Message | drained(?DRAIN)]],
    returned(callback(C, deliver, [self(), Batch, C#conn.state]), C);
mail({'$gen_call', {From, Ref}, info}, C = #conn{client = Client, info = Facts, state = State}) ->
    Conninfo = maps:from_list([Fact || Fact <- Facts, is_tuple(Fact)]),
    From ! {Ref, #{conninfo => Conninfo#{conn_mod => emqx_exproto_conn, connected => true},
                   clientinfo => Client, conn_state => connected, session => #{}, will_msg => State,
                   sockinfo => #{active_n => 100}}},
    C;
mail({system, {To, Tag}, resume}, C) ->
    To ! {Tag, ok},
    C;
mail({'$gen_cast', Request}, C) -> request(Request, C);
mail({outgoing, Data}, #conn{socktype = udp}) when byte_size(Data) > ?DATAGRAM -> {stop, {shutdown, {sock_closed, emsgsize}}};
mail({outgoing, Data}, C) ->
    _ = iolist_size(Data),
    %% A full socket holds the process that writes to it.
    case get(reads) of
        false -> receive reads_again -> put(reads, true) end;
        _ -> ok
    end,
    told(C, {sent, Data}),
    C;
mail(_, C) -> C.

%% Segments of one write come before what the device does next.
waiting_for_more(C) ->
    receive
        {more, Rest} -> {next, [{data, Rest}], C};
        {'$gen_cast', Request} ->
            case handle([{'$gen_cast', Request}], C) of
                Now = #conn{} -> waiting_for_more(Now);
                Stop -> Stop
            end
    end.

returned(ok, C) -> C;
returned({ok, State}, C) -> C#conn{state = State};
returned({error, Reason}, _) -> {stop, {shutdown, Reason}}.

drained(0) -> [];
drained(Left) ->
    receive {deliver, Message} -> [Message | drained(Left - 1)]
    after 0 -> []
    end.

request({send, Data}, C) -> {next, [{outgoing, Data}], C};
request(close, _) -> {stop, {shutdown, {sock_closed, normal}}};
request({register, Map}, C = #conn{registered = true}) when is_map(Map) -> C;
request({register, Map}, C = #conn{client = Client}) ->
    #{proto_name := Name} = Map,
    _ = case Name of undefined -> ok; _ -> string:lowercase(Name) end,
    true = lists:all(fun valid/1, maps:to_list(Map)),
    #{clientid := Id} = Map,
    discard(Id),
    ets:insert(emqx_channel, {Id, self()}),
    ets:insert(emqx_channel_conn, {{Id, self()}, emqx_exproto_conn}),
    told(C, {registered, Map}),
    C#conn{registered = true, client = maps:merge(Client, maps:with([clientid, username, mountpoint], Map))};
request({publish, Message}, C = #conn{client = #{clientid := Id}, registered = Registered, subs = Subs}) ->
    From = case Registered of false -> element(4, Message); _ -> Id end,
    route(Subs, setelement(4, Message, From)),
    C;
request({subscribe, Topic, Qos}, C = #conn{subs = Subs, client = #{clientid := Id}})
        when is_integer(Qos), Qos >= 0, Qos =< 2 ->
    {Group, Words} = parsed(Topic),
    case ets:match_object(Subs, {self(), Topic, '_', '_', '_'}) of
        [] ->
            case ets:lookup(emqx_submon, self()) of
                [] -> ets:insert(emqx_submon, {self(), Id});
                [{_, Id}] -> ok;
                _ -> error(subid_conflict)
            end;
        _ -> ok
    end,
    ets:match_delete(Subs, {self(), Topic, '_', '_', '_'}),
    ets:insert(Subs, {self(), Topic, Group, Words, Qos}),
    told(C, {subscribed, Topic, Qos}),
    C;
request({unsubscribe, Topic}, C = #conn{subs = Subs}) ->
    _ = parsed(Topic),
    ets:match_delete(Subs, {self(), Topic, '_', '_', '_'}),
    told(C, {unsubscribed, Topic}),
    C;
request(_, C) -> C.

discard(Id) ->
    Others = [Pid || {_, Pid} <- ets:lookup(emqx_channel, Id), _ <- ets:lookup(emqx_channel_conn, {Id, Pid})],
    [catch gen:call(Pid, '$gen_call', discard, 5000) || Pid <- Others],
    ok.

valid({proto_name, undefined}) -> true;
valid({proto_ver, Version}) -> is_binary(Version) orelse is_integer(Version);
valid({keepalive, Seconds}) -> is_integer(Seconds);
valid({Key, Value}) when Key =:= proto_name; Key =:= clientid; Key =:= username; Key =:= mountpoint ->
    is_binary(Value).

terminate(Reason, C = #conn{subs = Subs}) ->
    _ = callback(C, terminated, [self(), text(Reason), C#conn.state]),
    gone(self(), Subs),
    closed_socket(C),
    told(C, {closed, text(Reason)}).

%% All peers of a UDP listener share its socket.
closed_socket(#conn{socktype = udp, subs = Subs}) ->
    [{owner, Id, Control, _}] = ets:lookup(Subs, owner),
    ets:insert(Subs, {socket_closed, true}),
    Control ! {out, {event, Id, {socket_closed, true}}};
closed_socket(_) -> ok.

told(#conn{dev = Dev, control = Control}, What) -> Control ! {out, {event, {dev, Dev}, What}}.

%% --- messages

message(From, Qos, Topic, Payload) ->
    Now = erlang:system_time(microsecond),
    Unique = erlang:unique_integer([positive]),
    {message, <<Now:64, Unique:64>>, Qos, From, #{}, #{}, Topic, Payload, Now div 1000}.

facts({message, Id, Qos, From, _, _, Topic, Payload, Timestamp}) ->
    [{id, Id}, {qos, Qos}, {from, From}, {topic, Topic}, {payload, Payload}, {timestamp, Timestamp}].

route(Subs, Message = {message, Id, Qos, From, Flags, Headers, Topic, Payload, Timestamp})
        when byte_size(Id) =:= 16, is_integer(Qos), Qos >= 0, Qos =< 2, is_binary(From) orelse is_atom(From),
             is_map(Flags), is_map(Headers), is_binary(Topic), is_binary(Payload), is_integer(Timestamp) ->
    [{owner, Owner, Control, Turns}] = ets:lookup(Subs, owner),
    Control ! {out, {event, Owner, {published, Topic, Payload, Qos, From}}},
    Words = words(Topic),
    Found = [{Group, {Pid, Group =/= none andalso Filter}} ||
             {Pid, Filter, Group, Pattern, _} <- ets:match_object(Subs, {'_', '_', '_', '_', '_'}),
             matches(Words, Pattern)],
    [Pid ! {deliver, Message} || {none, {Pid, _}} <- Found],
    Shared = [Sub || {Group, Sub} <- Found, Group =/= none],
    [begin
         Members = lists:sort([Pid || {Pid, Of} <- Shared, Of =:= Filter]),
         Turn = ets:update_counter(Turns, Filter, 1, {Filter, 0}),
         lists:nth(1 + Turn rem length(Members), Members) ! {deliver, Message}
     end || Filter <- lists:usort([Of || {_, Of} <- Shared])],
    ok.

parsed(<<"$share/", Rest/binary>>) ->
    [Group, Filter] = binary:split(Rest, <<"/">>),
    {Group, words(Filter)};
parsed(<<"$queue/", Filter/binary>>) -> {<<"$queue">>, words(Filter)};
parsed(Filter) -> {none, words(Filter)}.

words(Topic) -> binary:split(Topic, <<"/">>, [global]).

matches([<<"$", _/binary>> | _], [<<"+">> | _]) -> false;
matches([<<"$", _/binary>> | _], [<<"#">>]) -> false;
matches(Words, Pattern) -> matches_rest(Words, Pattern).

matches_rest(_, [<<"#">>]) -> true;
matches_rest([], []) -> true;
matches_rest([_ | Words], [<<"+">> | Pattern]) -> matches_rest(Words, Pattern);
matches_rest([Word | Words], [Word | Pattern]) -> matches_rest(Words, Pattern);
matches_rest(_, _) -> false.

%% --- many at once

%% Processes in a closed loop: call, wait for the answer and the echo, and again. Answers what they did and
%% how long it took, in microseconds.
loops(Listener, Count, Size, Milliseconds) ->
    Self = self(),
    Facts = about(1),
    Pids = [spawn_link(fun() -> looping(Listener, Self, Size, Facts) end) || _ <- lists:seq(1, Count)],
    [receive {ready, Pid} -> ok end || Pid <- Pids],
    Begin = erlang:monotonic_time(microsecond),
    [Pid ! go || Pid <- Pids],
    timer:sleep(Milliseconds),
    [Pid ! stop || Pid <- Pids],
    Done = [receive {stopped, Pid, Number} -> Number end || Pid <- Pids],
    Took = erlang:monotonic_time(microsecond) - Begin,
    [Pid ! leave || Pid <- Pids],
    [receive {left, Pid} -> ok end || Pid <- Pids],
    {lists:sum(Done), lists:min(Done), Took}.

looping(Listener, Parent, Size, Facts) ->
    {ok, {0, State}} = call(Listener, init, [self(), Facts]),
    Parent ! {ready, self()},
    receive go -> ok end,
    Padding = binary:copy(<<"x">>, Size - 11),
    Number = looped(Listener, Padding, State, 0),
    Parent ! {stopped, self(), Number},
    receive leave -> ok end,
    _ = call(Listener, terminated, [self(), <<"{shutdown,{sock_closed,tcp_closed}}">>, State]),
    Parent ! {left, self()}.

looped(Listener, Padding, State, Number) ->
    receive
        stop -> Number
    after 0 ->
        %% A line, whatever the number: ten digits.
        Data = <<(integer_to_binary(1000000000 + Number))/binary, Padding/binary, "\n">>,
        Ref = make_ref(),
        Listener ! {call, self(), Ref, received, [self(), Data, State]},
        receive {answer, Ref, {ok, _}} -> ok end,
        receive {'$gen_cast', {send, Data}} -> ok end,
        looped(Listener, Padding, State, Number + 1)
    end.

%% Calls for many connections at once, all sent before the first answer is looked at; answers whether each
%% connection got its answer and its echo. Between connections there is no order.
burst(Listener, Count, Rounds) ->
    Self = self(),
    Pids = [spawn_link(fun() -> forward(Self, Number) end) || Number <- lists:seq(1, Count)],
    Everybody = lists:zip(lists:seq(1, Count), Pids),
    Inits = burst_calls(Listener, init, [{Number, [Pid, about(Number)]} || {Number, Pid} <- Everybody]),
    true = lists:all(fun({ok, {0, _}}) -> true; (_) -> false end, Inits),
    Outcomes =
        [begin
             Answers = burst_calls(Listener, received,
                                   [{Number, [Pid, line(Round, Number), undefined]} || {Number, Pid} <- Everybody]),
             %% Echoes pass through a process each, which says nothing about the order between them.
             Echoes = [receive {echo, From, Data} -> {From, Data} end || _ <- Everybody],
             {lists:all(fun({ok, _}) -> true; (_) -> false end, Answers),
              lists:sort(Echoes) =:= [{Number, line(Round, Number)} || {Number, _} <- Everybody]}
         end || Round <- lists:seq(1, Rounds)],
    _ = burst_calls(Listener, terminated,
                    [{Number, [Pid, <<"{shutdown,{sock_closed,tcp_closed}}">>, undefined]} || {Number, Pid} <- Everybody]),
    [begin unlink(Pid), exit(Pid, kill) end || Pid <- Pids],
    Outcomes.

burst_calls(Listener, Function, Calls) ->
    [Listener ! {call, self(), Number, Function, Arguments} || {Number, Arguments} <- Calls],
    Answers = maps:from_list([receive {answer, Number, Result} -> {Number, Result} end || _ <- Calls]),
    [maps:get(Number, Answers) || {Number, _} <- Calls].

forward(To, Number) ->
    receive {'$gen_cast', {send, Data}} -> To ! {echo, Number, Data} end,
    forward(To, Number).

line(Round, Number) -> iolist_to_binary(io_lib:format("~b of round ~b~n", [Number, Round])).

about(Number) ->
    [{socktype, tcp}, {peername, {{127, 0, 0, 1}, 1024 + Number rem 60000}}, {sockname, {{127, 0, 0, 1}, 7993}},
     {peercert, nossl}].
