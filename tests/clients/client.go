// The behaviours of the table with nats.go. Called with the behaviour's name; see README.md.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const patience = 20 * time.Second

var (
	url   = os.Getenv("URL")
	dir   = os.Getenv("DIR")
	stdin = bufio.NewReader(os.Stdin)
)

func saw(what ...interface{}) { fmt.Println(what...) }

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func check(holds bool, what string) {
	if !holds {
		panic(what)
	}
}

func ask(order string) {
	fmt.Println("!" + order)
	_, err := stdin.ReadString('\n')
	must(err)
}

// A list that callbacks add to.
type list struct {
	sync.Mutex
	items []string
}

func (l *list) add(item string) {
	l.Lock()
	defer l.Unlock()
	l.items = append(l.items, item)
}

func (l *list) all() []string {
	l.Lock()
	defer l.Unlock()
	return append([]string{}, l.items...)
}

func (l *list) has(part string) func() bool {
	return func() bool { return strings.Contains(strings.Join(l.all(), "\n"), part) }
}

func connect(options ...nats.Option) *nats.Conn {
	usual := []nats.Option{
		nats.ReconnectWait(100 * time.Millisecond), nats.MaxReconnects(200),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}
	nc, err := nats.Connect(url, append(usual, options...)...)
	must(err)
	return nc
}

func until(condition func() bool) {
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(20 * time.Millisecond) {
		check(time.Now().Before(deadline), "it does not happen")
	}
}

func next(sub *nats.Subscription) *nats.Msg {
	msg, err := sub.NextMsg(patience)
	must(err)
	return msg
}

func listen(nc *nats.Conn, subject string) *nats.Subscription {
	sub, err := nc.SubscribeSync(subject)
	must(err)
	must(nc.Flush())
	return sub
}

func worksOn(nc *nats.Conn, subject string) {
	sub := listen(nc, subject)
	must(nc.Publish(subject, []byte("yes")))
	check(string(next(sub).Data) == "yes", "it does not work")
	must(sub.Unsubscribe())
}

func works(nc *nats.Conn) { worksOn(nc, "it.works") }

func refused(options ...nats.Option) string {
	_, err := nats.Connect(url, append(options, nats.NoReconnect())...)
	check(err != nil, "it was let in")
	return strings.ToLower(err.Error())
}

func errorsOf(act func(*nats.Conn), wanted string, options ...nats.Option) *nats.Conn {
	told := &list{}
	handler := func(_ *nats.Conn, _ *nats.Subscription, err error) {
		told.add(strings.ToLower(err.Error()))
	}
	nc := connect(append(options, nats.ErrorHandler(handler))...)
	act(nc)
	must(nc.Flush())
	until(told.has(wanted))
	saw(wanted, nc.IsConnected())
	return nc
}

func double(msg *nats.Msg) {
	number, err := strconv.Atoi(string(msg.Data))
	must(err)
	must(msg.Respond([]byte(strconv.Itoa(2 * number))))
}

func certificate() nats.Option { return nats.ClientCert(dir+"/client.pem", dir+"/client.key") }
func authority() nats.Option   { return nats.RootCAs(dir + "/ca.pem") }

var behaviours = map[string]func(){
	"version": func() { saw(nats.Version) },
	"connect": func() {
		nc := connect(nats.Name("table"))
		saw("max_payload", nc.MaxPayload(), "headers", nc.HeadersSupported())
		_, err := nc.RTT()
		must(err)
		works(nc)
	},
	"verbose-pedantic": func() {
		works(connect(func(o *nats.Options) error {
			o.Verbose, o.Pedantic = true, true
			return nil
		}))
	},
	"no-echo": func() {
		quiet, other := connect(nats.NoEcho()), connect()
		mine, theirs := listen(quiet, "echo"), listen(other, "echo")
		must(quiet.Publish("echo", []byte("1")))
		must(quiet.Flush())
		check(string(next(theirs).Data) == "1", "not heard")
		must(other.Publish("echo", []byte("2")))
		saw("heard", string(next(mine).Data))
	},
	"publish-subscribe": func() {
		a, b := connect(), connect()
		one, rest := listen(a, "log.*.disk"), listen(a, "log.>")
		for at := 0; at < 1000; at++ {
			must(b.Publish("log.x.disk", []byte(strconv.Itoa(at))))
		}
		must(b.Publish("log.y", []byte("end")))
		for at := 0; at < 1000; at++ {
			check(string(next(one).Data) == strconv.Itoa(at), "out of order")
			check(string(next(rest).Data) == strconv.Itoa(at), "out of order")
		}
		saw("then", string(next(rest).Data))
	},
	"queue": func() {
		got := &list{}
		for at := 0; at < 3; at++ {
			nc, member := connect(), strconv.Itoa(at)
			_, err := nc.QueueSubscribe("work", "crew", func(msg *nats.Msg) {
				got.add(member + " " + string(msg.Data))
			})
			must(err)
			must(nc.Flush())
		}
		sender := connect()
		for at := 0; at < 300; at++ {
			must(sender.Publish("work", []byte(strconv.Itoa(at))))
		}
		must(sender.Flush())
		until(func() bool { return len(got.all()) >= 300 })
		members, works := map[string]bool{}, map[string]bool{}
		for _, item := range got.all() {
			parts := strings.Fields(item)
			members[parts[0]], works[parts[1]] = true, true
		}
		saw(len(got.all()), len(works), len(members))
	},
	"request": func() {
		server, client := connect(), connect()
		_, err := server.Subscribe("double", double)
		must(err)
		must(server.Flush())
		for at := 0; at < 100; at++ {
			answer, err := client.Request("double", []byte(strconv.Itoa(at)), patience)
			must(err)
			check(string(answer.Data) == strconv.Itoa(2*at), "another answer")
		}
		answer, err := connect(nats.UseOldRequestStyle()).Request("double", []byte("21"), patience)
		must(err)
		saw("old style", string(answer.Data))
	},
	"no-responders": func() {
		_, err := connect().Request("nobody.home", nil, patience)
		saw(err)
		_, err = connect(nats.UseOldRequestStyle()).Request("nobody.home", nil, patience)
		saw(err)
	},
	"request-many": func() {
		for at := 0; at < 5; at++ {
			nc, body := connect(), []byte(strconv.Itoa(at))
			_, err := nc.Subscribe("who", func(msg *nats.Msg) { must(msg.Respond(body)) })
			must(err)
			must(nc.Flush())
		}
		client := connect()
		inbox := nats.NewInbox()
		sub := listen(client, inbox)
		must(client.PublishRequest("who", inbox, nil))
		got := []string{}
		for at := 0; at < 5; at++ {
			got = append(got, string(next(sub).Data))
		}
		sort.Strings(got)
		saw(got)
	},
	"headers": func() {
		nc := connect()
		sub := listen(nc, "h")
		header := nats.Header{"Trace-Id": {"abc"}, "Colour": {"red", "green blue"}}
		must(nc.PublishMsg(&nats.Msg{Subject: "h", Header: header, Data: []byte("body")}))
		must(nc.PublishMsg(&nats.Msg{Subject: "h", Header: header}))
		for at := 0; at < 2; at++ {
			msg := next(sub)
			saw(msg.Header, string(msg.Data))
		}
	},
	"unsubscribe-after": func() {
		nc := connect()
		sub := listen(nc, "few")
		must(sub.AutoUnsubscribe(3))
		for at := 0; at < 10; at++ {
			must(nc.Publish("few", []byte(strconv.Itoa(at))))
		}
		for at := 0; at < 3; at++ {
			check(string(next(sub).Data) == strconv.Itoa(at), "another message")
		}
		_, err := sub.NextMsg(patience)
		must(nc.Flush())
		saw(err, nc.Stats().InMsgs)
	},
	"drain": func() {
		got, closed := &list{}, make(chan struct{})
		nc := connect(nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
		other := connect()
		_, err := nc.Subscribe("flood", func(*nats.Msg) {
			time.Sleep(time.Millisecond)
			got.add("x")
		})
		must(err)
		must(nc.Flush())
		for at := 0; at < 200; at++ {
			must(other.Publish("flood", nil))
		}
		must(other.Flush())
		must(nc.Flush())
		must(nc.Drain())
		<-closed
		saw("drained", len(got.all()))
	},
	"max-payload": func() {
		nc := connect()
		sub := listen(nc, "big")
		must(nc.Publish("big", make([]byte, nc.MaxPayload())))
		check(len(next(sub).Data) == int(nc.MaxPayload()), "cut")
		saw(nc.Publish("big", make([]byte, nc.MaxPayload()+1)))
		works(nc)
	},
	"permissions": func() {
		user := nats.UserInfo("u", "p")
		worksOn(errorsOf(func(nc *nats.Conn) {
			must(nc.Publish("secret", nil))
		}, "permissions violation for publish to", user), "open.x")
		worksOn(errorsOf(func(nc *nats.Conn) {
			listen(nc, "secret")
		}, "permissions violation for subscription to", user), "open.x")
	},
	"max-subscriptions": func() {
		errorsOf(func(nc *nats.Conn) {
			for _, subject := range []string{"a", "b", "c"} {
				_, err := nc.SubscribeSync(subject)
				must(err)
			}
		}, "maximum subscriptions exceeded")
	},
	"max-connections": func() {
		first := connect()
		// The text may be lost with nats-server, which closes over what the client sent.
		refused()
		saw("refused")
		works(first)
	},
	"auth-password": func() { works(connect(nats.UserInfo("ann", "secret"))) },
	"auth-token":    func() { works(connect(nats.Token("t0ken"))) },
	"auth-nkey": func() {
		option, err := nats.NkeyOptionFromSeed(dir + "/user.nk")
		must(err)
		works(connect(option))
	},
	"auth-jwt":   func() { works(connect(nats.UserCredentials(dir + "/user.creds"))) },
	"auth-wrong": func() { saw(refused(nats.UserInfo("ann", "wrong"))) },
	"tls":        func() { works(connect(authority())) },
	"tls-first":  func() { works(connect(authority(), nats.TLSHandshakeFirst())) },
	"websocket": func() {
		nc, err := nats.Connect(os.Getenv("WS_URL"), nats.Compression(true))
		must(err)
		works(nc)
		sub := listen(nc, "big")
		must(nc.Publish("big", make([]byte, 100000)))
		saw(len(next(sub).Data))
	},
	"tls-certificate": func() {
		works(connect(authority(), certificate()))
		refused(authority())
		saw("refused without one")
	},
	"reconnect": func() {
		told := &list{}
		nc := connect(
			nats.DisconnectErrHandler(func(*nats.Conn, error) { told.add("lost") }),
			nats.ReconnectHandler(func(*nats.Conn) { told.add("back") }))
		sub := listen(nc, "after")
		ask("stop")
		until(told.has("lost"))
		must(nc.Publish("after", []byte("buffered")))
		ask("start")
		until(told.has("back"))
		saw(string(next(sub).Data), told.all())
		works(nc)
	},
	"closed": func() {
		told := &list{}
		nc := connect(nats.NoReconnect(),
			nats.DisconnectErrHandler(func(*nats.Conn, error) { told.add("lost") }),
			nats.ClosedHandler(func(*nats.Conn) { told.add("closed") }))
		must(nc.Flush())
		ask("stop")
		until(told.has("closed"))
		saw(told.all())
	},
	"lame-duck": func() {
		told := &list{}
		nc := connect(nats.LameDuckModeHandler(func(*nats.Conn) { told.add("told") }))
		must(nc.Flush())
		ask("lame-duck")
		until(told.has("told"))
		saw("told")
	},
	"slow-consumer": func() {
		told, blocked := &list{}, make(chan struct{})
		nc := connect(nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrSlowConsumer) {
				told.add("told")
			}
		}))
		sub, err := nc.Subscribe("fast", func(*nats.Msg) { <-blocked })
		must(err)
		must(sub.SetPendingLimits(10, 1<<20))
		for at := 0; at < 100; at++ {
			must(nc.Publish("fast", nil))
		}
		must(nc.Flush())
		until(told.has("told"))
		close(blocked)
		saw("told")
		works(nc)
	},
	"discovered-servers": func() {
		told := &list{}
		nc := connect(nats.ReconnectHandler(func(*nats.Conn) { told.add("back") }))
		until(func() bool { return len(nc.Servers()) >= 2 })
		ask("stop")
		until(told.has("back"))
		works(nc)
		saw("went on at the other")
	},
	"jetstream": func() {
		stream, err := connect().JetStream(nats.MaxWait(patience))
		must(err)
		_, err = stream.AccountInfo()
		saw(err)
	},
}

func main() {
	behaviour := behaviours[os.Args[1]]
	if behaviour == nil {
		os.Exit(77)
	}
	behaviour()
}
