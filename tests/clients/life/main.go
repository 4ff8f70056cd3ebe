// The life of an operator, as its tools lead it: keys from nk, tokens made with the library of
// nsc, pushed, pulled, revoked, deleted and made anew over the system account.
//
//	life SERVER NK
//
// SERVER is a nats-server or this broker, NK the tool nk. Two servers form a cluster: the first has
// a resolver of the type full, the second one of the type cache. Every step prints a line, and the
// last line is `N passed, N failed`.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

const patience = 10 * time.Second

var passed, failed int

// check prints a step and whether it holds.
func check(step string, err error) {
	if err != nil {
		failed++
		fmt.Printf("FAIL %s: %v\n", step, err)
		return
	}
	passed++
	fmt.Printf("ok   %s\n", step)
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// until tries again until there is no error, or patience has ended.
func until(try func() error) error {
	end := time.Now().Add(patience)
	for {
		err := try()
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// key is a pair of keys that nk has made.
type key struct {
	pair nkeys.KeyPair
	id   string
}

type life struct {
	server, nk, dir string
	ports           [4]int
	processes       [2]*exec.Cmd
	operator        key
	// signer is the operator's signing key.
	signer  key
	system  key
	account key
	// claims are those of the account.
	claims *jwt.AccountClaims
}

// generate has nk make a key, and reads back what it calls its public part.
func (l *life) generate(kind string) key {
	seed := must(exec.Command(l.nk, "-gen", kind).Output())
	file := filepath.Join(l.dir, "seed")
	if err := os.WriteFile(file, seed, 0o600); err != nil {
		panic(err)
	}
	id := must(exec.Command(l.nk, "-inkey", file, "-pubout").Output())
	pair := must(nkeys.FromSeed([]byte(strings.TrimSpace(string(seed)))))
	return key{pair, strings.TrimSpace(string(id))}
}

func (l *life) url(server int) string {
	return fmt.Sprintf("nats://127.0.0.1:%d", l.ports[server])
}

// start writes the configuration of a server and starts it.
func (l *life) start(server int) {
	name := []string{"full", "cache"}[server]
	resolver := `{ type: full, dir: "%s", allow_delete: true, interval: "2m" }`
	if server == 1 {
		resolver = `{ type: cache, dir: "%s", ttl: "1h" }`
	}
	preload := must(l.systemClaims().Encode(l.operator.pair))
	text := fmt.Sprintf(`server_name: %s
listen: "127.0.0.1:%d"
operator: "%s"
resolver: %s
resolver_preload: { %s: %s }
cluster { name: c, listen: "127.0.0.1:%d", routes: ["nats://127.0.0.1:%d"] }
`, name, l.ports[server], filepath.Join(l.dir, "operator.jwt"),
		fmt.Sprintf(resolver, filepath.Join(l.dir, name)), l.system.id, preload,
		l.ports[2+server], l.ports[3-server])
	file := filepath.Join(l.dir, name+".conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		panic(err)
	}
	command := exec.Command(l.server, "-c", file, "-l", filepath.Join(l.dir, name+".log"))
	if err := command.Start(); err != nil {
		panic(err)
	}
	l.processes[server] = command
}

func (l *life) stop(server int) {
	_ = l.processes[server].Process.Signal(os.Interrupt)
	_ = l.processes[server].Wait()
}

// writeOperator writes the token of the operator, with its signing key.
func (l *life) writeOperator() {
	claims := jwt.NewOperatorClaims(l.operator.id)
	claims.Name = "O"
	claims.SigningKeys.Add(l.signer.id)
	claims.SystemAccount = l.system.id
	token := must(claims.Encode(l.operator.pair))
	if err := os.WriteFile(filepath.Join(l.dir, "operator.jwt"), []byte(token), 0o600); err != nil {
		panic(err)
	}
}

func (l *life) systemClaims() *jwt.AccountClaims {
	claims := jwt.NewAccountClaims(l.system.id)
	claims.Name = "SYS"
	return claims
}

// user makes a user of an account, signed by one of its keys.
func (l *life) user(name string, account, signer key, scoped bool) nats.Option {
	pair := l.generate("user")
	claims := jwt.NewUserClaims(pair.id)
	claims.Name = name
	if signer.id != account.id {
		claims.IssuerAccount = account.id
	}
	if scoped {
		claims.UserPermissionLimits = jwt.UserPermissionLimits{}
	}
	token := must(claims.Encode(signer.pair))
	seed := must(pair.pair.Seed())
	return nats.UserJWTAndSeed(token, string(seed))
}

func (l *life) connect(server int, user nats.Option, more ...nats.Option) (*nats.Conn, error) {
	options := append([]nats.Option{user, nats.NoReconnect(), nats.Timeout(5 * time.Second),
		nats.IgnoreDiscoveredServers()}, more...)
	return nats.Connect(l.url(server), options...)
}

// admin connects to the system account.
func (l *life) admin(server int) *nats.Conn {
	user := l.user("admin", l.system, l.system, false)
	var conn *nats.Conn
	err := until(func() (err error) {
		conn, err = l.connect(server, user)
		return err
	})
	if err != nil {
		panic(err)
	}
	return conn
}

// ask sends a request to the system, and reads its answer's data.
func ask(admin *nats.Conn, subject string, body []byte) (json.RawMessage, error) {
	answer, err := admin.Request(subject, body, patience)
	if err != nil {
		return nil, err
	}
	var read struct {
		Data  json.RawMessage `json:"data"`
		Error *struct {
			Code        int    `json:"code"`
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(answer.Data, &read); err != nil {
		return nil, fmt.Errorf("%w in %q", err, answer.Data)
	}
	if read.Error != nil {
		return nil, fmt.Errorf("%d %s", read.Error.Code, read.Error.Description)
	}
	return read.Data, nil
}

// push signs the account's token anew, and pushes it. Of two tokens of one second either may hold.
func (l *life) push(admin *nats.Conn) error {
	time.Sleep(1100 * time.Millisecond)
	token, err := l.claims.Encode(l.signer.pair)
	if err != nil {
		return err
	}
	data, err := ask(admin, "$SYS.REQ.CLAIMS.UPDATE", []byte(token))
	if err != nil {
		return err
	}
	var done struct {
		Account string `json:"account"`
		Code    int    `json:"code"`
	}
	if err := json.Unmarshal(data, &done); err != nil {
		return err
	}
	if done.Account != l.account.id || done.Code != 200 {
		return fmt.Errorf("%s", data)
	}
	return nil
}

// refused says whether a user does not come in, on both servers.
func (l *life) refused(user nats.Option) error {
	for server := range l.processes {
		err := until(func() error {
			conn, err := l.connect(server, user)
			if err == nil {
				conn.Close()
				return fmt.Errorf("server %d lets it in", server)
			}
			if !errors.Is(err, nats.ErrAuthorization) && !errors.Is(err, nats.ErrAuthExpired) {
				return fmt.Errorf("server %d: %w", server, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// served says whether a user comes in, on both servers, and messages cross.
func (l *life) served(user nats.Option, subject string) error {
	var conns []*nats.Conn
	for server := range l.processes {
		err := until(func() error {
			conn, err := l.connect(server, user)
			if err == nil {
				conns = append(conns, conn)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("server %d: %w", server, err)
		}
		defer conns[server].Close()
	}
	sub, err := conns[1].SubscribeSync(subject)
	if err != nil {
		return err
	}
	return until(func() error {
		if err := conns[0].Publish(subject, nil); err != nil {
			return err
		}
		_, err := sub.NextMsg(200 * time.Millisecond)
		return err
	})
}

// comesIn says whether a server lets a user in.
func (l *life) comesIn(server int, user nats.Option) error {
	return until(func() error {
		conn, err := l.connect(server, user)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// cut waits until a connection was closed.
func cut(conn *nats.Conn) error {
	return until(func() error {
		if !conn.IsClosed() {
			return errors.New("it is still there")
		}
		return nil
	})
}

func (l *life) run() {
	l.operator, l.signer = l.generate("operator"), l.generate("operator")
	l.system, l.account = l.generate("account"), l.generate("account")
	scope := l.generate("account")
	l.writeOperator()
	l.start(0)
	l.start(1)
	admin := l.admin(0)
	user := l.user("u", l.account, l.account, false)
	check("nobody of an account that was not pushed comes in", l.refused(user))

	l.claims = jwt.NewAccountClaims(l.account.id)
	l.claims.Name = "A"
	scoped := jwt.NewUserScope()
	scoped.Key, scoped.Role = scope.id, "worker"
	scoped.Template.Pub.Allow.Add("work.{{name()}}.>")
	scoped.Template.Sub.Allow.Add("work.{{name()}}.>", "_INBOX.>")
	l.claims.SigningKeys.AddScopedSigner(scoped)
	check("an account is pushed", l.push(admin))
	check("its user is served by both servers", l.served(user, "any"))
	worker := l.user("w", l.account, scope, true)
	check("so is a user of a scope", l.served(worker, "work.w.a"))
	check("the scope governs it", l.violates(worker, "other"))

	check("the account is looked up", l.lookedUp(admin))
	check("the account is listed", l.listed(admin, true))
	check("all accounts are pulled", l.pulled(admin))
	other := l.generate("operator")
	token := must(l.claims.Encode(other.pair))
	_, _ = ask(admin, "$SYS.REQ.CLAIMS.UPDATE", []byte(token))
	check("a token that a stranger has signed takes nothing away", l.served(user, "any"))

	l.claims.Limits.Conn = 1
	check("a lower limit is pushed", l.push(admin))
	check("the limit holds", l.full(user))
	l.claims.Limits.Conn = jwt.NoLimit
	check("the limit is taken back", l.push(admin))

	one := must(l.connect(1, user))
	time.Sleep(1100 * time.Millisecond) // A revocation is for users of the same second, too.
	l.claims.Revoke(must(publicOf(one)))
	check("a user is revoked", l.push(admin))
	check("it is cut", cut(one))
	check("it does not come in again", l.refused(user))
	user = l.user("v", l.account, l.account, false)
	check("another one does", l.served(user, "any"))

	bound := must(l.connect(1, worker))
	delete(l.claims.SigningKeys, scope.id)
	next := l.generate("account")
	scoped.Key = next.id
	l.claims.SigningKeys.AddScopedSigner(scoped)
	check("a signing key of the account is changed", l.push(admin))
	check("who came by the old one is cut", cut(bound))
	check("and does not come in again", l.refused(worker))
	worker = l.user("w", l.account, next, true)
	check("who comes by the new one is served", l.served(worker, "work.w.a"))

	l.rotate(user)
	admin = l.admin(0)
	check("the account is signed by the operator's new key", l.push(admin))
	// A cache of nats-server keeps what the old key has signed, and refuses it.
	check("its users come in again", l.comesIn(0, user))
	check("so do those of the scope", l.comesIn(0, worker))

	last := must(l.connect(0, user))
	check("the account is deleted", l.remove(admin))
	check("its user is cut", cut(last))
	check("it is not listed any more", l.listed(admin, false))
	admin.Close()
	l.stop(1)
	l.stop(0)
}

// publicOf returns the key of the user of a connection.
func publicOf(conn *nats.Conn) (string, error) {
	token, err := conn.Opts.UserJWT()
	if err != nil {
		return "", err
	}
	claims, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return "", err
	}
	return claims.Subject, nil
}

func (l *life) violates(user nats.Option, subject string) error {
	errs := make(chan error, 16)
	handler := func(_ *nats.Conn, _ *nats.Subscription, err error) { errs <- err }
	conn, err := l.connect(1, user, nats.ErrorHandler(handler))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.Publish(subject, nil); err != nil {
		return err
	}
	select {
	case err := <-errs:
		if !errors.Is(err, nats.ErrPermissionViolation) {
			return err
		}
		return nil
	case <-time.After(patience):
		return errors.New("nothing is violated")
	}
}

func (l *life) lookedUp(admin *nats.Conn) error {
	subject := fmt.Sprintf("$SYS.REQ.ACCOUNT.%s.CLAIMS.LOOKUP", l.account.id)
	answer, err := admin.Request(subject, nil, patience)
	if err != nil {
		return err
	}
	claims, err := jwt.DecodeAccountClaims(string(answer.Data))
	if err != nil {
		return err
	}
	if claims.Name != "A" || claims.Issuer != l.signer.id {
		return fmt.Errorf("%s of %s", claims.Name, claims.Issuer)
	}
	return nil
}

func (l *life) listed(admin *nats.Conn, is bool) error {
	data, err := ask(admin, "$SYS.REQ.CLAIMS.LIST", nil)
	if err != nil {
		return err
	}
	if strings.Contains(string(data), l.account.id) != is {
		return fmt.Errorf("%s", data)
	}
	return nil
}

// pulled asks for all tokens, which come one by one until an empty message.
func (l *life) pulled(admin *nats.Conn) error {
	inbox := nats.NewInbox()
	sub, err := admin.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	if err := admin.PublishRequest("$SYS.REQ.CLAIMS.PACK", inbox, nil); err != nil {
		return err
	}
	found := false
	for {
		message, err := sub.NextMsg(patience)
		if err != nil {
			return err
		}
		if len(message.Data) == 0 {
			break
		}
		id, token, _ := strings.Cut(string(message.Data), "|")
		if claims, err := jwt.DecodeAccountClaims(token); err != nil || claims.Subject != id {
			return fmt.Errorf("%s is not the token of %s: %v", token, id, err)
		}
		found = found || id == l.account.id
	}
	if !found {
		return errors.New("the account is not among them")
	}
	return nil
}

// full says whether a second connection of the account is refused.
func (l *life) full(user nats.Option) error {
	var conn *nats.Conn
	err := until(func() (err error) {
		conn, err = l.connect(0, user)
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	return until(func() error {
		second, err := l.connect(0, user)
		if err == nil {
			second.Close()
			return errors.New("a second one comes in")
		}
		if !strings.Contains(err.Error(), "maximum account active connections exceeded") {
			return err
		}
		return nil
	})
}

// rotate gives the operator a new signing key: what the old one has signed is worth nothing any
// more.
func (l *life) rotate(user nats.Option) {
	l.stop(1)
	l.stop(0)
	l.signer = l.generate("operator")
	l.writeOperator()
	l.start(0)
	l.start(1)
	l.admin(0).Close()
	l.admin(1).Close()
	check("what an old key of the operator has signed is worth nothing", l.refused(user))
}

func (l *life) remove(admin *nats.Conn) error {
	claims := jwt.NewGenericClaims(l.operator.id)
	claims.Data["accounts"] = []string{l.account.id}
	token, err := claims.Encode(l.operator.pair)
	if err != nil {
		return err
	}
	data, err := ask(admin, "$SYS.REQ.CLAIMS.DELETE", []byte(token))
	if err != nil {
		return err
	}
	if !strings.Contains(string(data), `"code":200`) {
		return fmt.Errorf("%s", data)
	}
	return nil
}

func main() {
	l := &life{server: os.Args[1], nk: os.Args[2], dir: must(os.MkdirTemp("", "life"))}
	var listeners []net.Listener
	defer func() {
		for _, process := range l.processes {
			if process != nil {
				_ = process.Process.Kill()
			}
		}
		if failed > 0 {
			for _, name := range []string{"full", "cache"} {
				log, _ := os.ReadFile(filepath.Join(l.dir, name+".log"))
				fmt.Printf("=== log of %s\n%s", name, log)
			}
		}
		_ = os.RemoveAll(l.dir)
		fmt.Printf("%d passed, %d failed\n", passed, failed)
		if failed > 0 {
			os.Exit(1)
		}
	}()
	for at := range l.ports {
		listener := must(net.Listen("tcp", "127.0.0.1:0"))
		l.ports[at] = listener.Addr().(*net.TCPAddr).Port
		listeners = append(listeners, listener)
	}
	for _, listener := range listeners {
		listener.Close()
	}
	l.run()
}
