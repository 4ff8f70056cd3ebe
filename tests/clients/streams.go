// Streams, key-value and object stores with nats.go: the behaviours that client.go has not.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The bound of one request.
func soon() context.Context {
	ctx, _ := context.WithTimeout(context.Background(), patience)
	return ctx
}

func streamsOf() jetstream.JetStream {
	js, err := jetstream.New(connect())
	must(err)
	return js
}

func some[T any](found T, err error) T {
	must(err)
	return found
}

// How the server refuses.
func fails[T any](_ T, err error) string {
	if err == nil {
		return "it went well"
	}
	return err.Error()
}

func fill(js jetstream.JetStream, subject string, count int) {
	for at := 0; at < count; at++ {
		some(js.Publish(soon(), subject, []byte(strconv.Itoa(at))))
	}
}

func stateOf(stream jetstream.Stream) string {
	found := some(stream.Info(soon())).State
	return fmt.Sprint(found.Msgs, found.FirstSeq, found.LastSeq, found.Consumers, found.NumDeleted)
}

func make1(js jetstream.JetStream, config jetstream.StreamConfig) jetstream.Stream {
	return some(js.CreateStream(soon(), config))
}

func sequence(msg jetstream.Msg) uint64 { return some(msg.Metadata()).Sequence.Stream }

func sequences(batch jetstream.MessageBatch) (found []uint64) {
	for msg := range batch.Messages() {
		found = append(found, sequence(msg))
		must(msg.DoubleAck(soon()))
	}
	must(batch.Error())
	return
}

func inOrder(found []uint64, from uint64, count int) bool {
	for at, one := range found {
		if one != from+uint64(at) {
			return false
		}
	}
	return len(found) == count
}

func content() []byte {
	mb, err := strconv.Atoi(os.Getenv("OBJECT_MB"))
	if err != nil {
		mb = 4
	}
	found := make([]byte, mb<<20)
	for at := range found {
		found[at] = byte(at / 7 % 251)
	}
	return found
}

func streamsOnes() {
	js := streamsOf()
	stream := make1(js, jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s.*"}, MaxMsgsPerSubject: 3, AllowDirect: true, AllowRollup: true,
		AllowMsgTTL: true, SubjectTransform: &jetstream.SubjectTransformConfig{Source: "s.old", Destination: "s.new"},
		RePublish: &jetstream.RePublish{Source: "s.a", Destination: "again.a"}, Metadata: map[string]string{"k": "v"}})
	saw(string(some(json.Marshal(some(stream.Info(soon())).Config))))
	saw(fails(js.CreateStream(soon(), jetstream.StreamConfig{Name: "S", Subjects: []string{"t"}})))
	saw(fails(js.CreateStream(soon(), jetstream.StreamConfig{Name: "T", Subjects: []string{"s.one"}})))
	saw(fails(js.CreateStream(soon(), jetstream.StreamConfig{Name: "T", Subjects: []string{"$JS.>"}})))
	saw(fails(js.CreateStream(soon(), jetstream.StreamConfig{Name: "T", Subjects: []string{"t"}, MaxAge: time.Millisecond})))
	saw(fails(js.Stream(soon(), "none")))
	again := some(js.Conn().SubscribeSync("again.>"))
	ack := some(js.Publish(soon(), "s.a", []byte("1"), jetstream.WithMsgID("x")))
	twice := some(js.Publish(soon(), "s.a", []byte("1"), jetstream.WithMsgID("x")))
	saw(ack.Stream, ack.Sequence, ack.Duplicate, twice.Sequence, twice.Duplicate)
	msg := next(again)
	saw(msg.Subject, string(msg.Data), msg.Header.Get("Nats-Sequence"), msg.Header.Get("Nats-Last-Sequence"))
	saw(fails(js.Publish(soon(), "s.a", nil, jetstream.WithExpectLastSequence(7))))
	saw(fails(js.Publish(soon(), "s.a", nil, jetstream.WithExpectLastSequencePerSubject(7))))
	saw(fails(js.Publish(soon(), "s.a", nil, jetstream.WithExpectLastMsgID("y"))))
	saw(fails(js.Publish(soon(), "s.a", nil, jetstream.WithExpectStream("T"))))
	saw(fails(js.Publish(soon(), "nobody", nil, jetstream.WithRetryAttempts(1), jetstream.WithRetryWait(time.Millisecond))))
	fill(js, "s.b", 5)
	some(js.Publish(soon(), "s.old", []byte("moved"), jetstream.WithMsgTTL(time.Hour)))
	some(js.Publish(soon(), "s.short", nil, jetstream.WithMsgTTL(time.Second)))
	saw(stateOf(stream))
	until(func() bool { return some(stream.Info(soon())).State.Msgs == 5 })
	saw(some(stream.Info(soon(), jetstream.WithSubjectFilter(">"))).State.Subjects)
	saw(some(stream.Info(soon(), jetstream.WithDeletedDetails(true))).State.Deleted)
	for _, found := range []*jetstream.RawStreamMsg{
		some(stream.GetMsg(soon(), 6)), some(stream.GetLastMsgForSubject(soon(), "s.b")),
		some(stream.GetMsg(soon(), 2, jetstream.WithGetMsgSubject("s.b"))), some(stream.GetLastMsgForSubject(soon(), "s.new")),
	} {
		saw(found.Sequence, found.Subject, string(found.Data), found.Header.Get("Nats-TTL"))
	}
	saw(fails(stream.GetMsg(soon(), 2)), stream.DeleteMsg(soon(), 6), stream.DeleteMsg(soon(), 6))
	saw(stream.SecureDeleteMsg(soon(), 5), stateOf(stream))
	must(stream.Purge(soon(), jetstream.WithPurgeSubject("s.b"), jetstream.WithPurgeKeep(1)))
	saw(stateOf(stream))
	must(stream.Purge(soon(), jetstream.WithPurgeSequence(7)))
	saw(stateOf(stream))
	changed := some(js.UpdateStream(soon(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.*", "more"}, MaxBytes: 1000, AllowMsgTTL: true}))
	saw(fails(js.UpdateStream(soon(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Storage: jetstream.MemoryStorage})))
	for at := 0; at < 10; at++ {
		some(js.Publish(soon(), "more", make([]byte, 100)))
	}
	saw(stateOf(changed), some(changed.Info(soon())).State.Bytes)
	full := make1(js, jetstream.StreamConfig{Name: "M", Subjects: []string{"m.*"}, Storage: jetstream.MemoryStorage,
		MaxMsgs: 2, Discard: jetstream.DiscardNew, DenyDelete: true, DenyPurge: true, MaxMsgSize: 100})
	fill(js, "m.a", 2)
	saw(fails(js.Publish(soon(), "m.a", nil)), full.DeleteMsg(soon(), 1), full.Purge(soon()))
	saw(fails(js.Publish(soon(), "m.a", make([]byte, 200))))
	names := []string{}
	for name := range js.StreamNames(soon()).Name() {
		names = append(names, name)
	}
	sort.Strings(names)
	saw(names, fails(js.StreamNameBySubject(soon(), "none.such")), some(js.StreamNameBySubject(soon(), "m.b")))
	account := some(js.AccountInfo(soon()))
	saw(account.Streams, account.Consumers, account.Limits)
	copied := make1(js, jetstream.StreamConfig{Name: "C", Mirror: &jetstream.StreamSource{Name: "M"}})
	joined := make1(js, jetstream.StreamConfig{Name: "J", Sources: []*jetstream.StreamSource{{Name: "M"}, {Name: "S", FilterSubject: "more"}}})
	until(func() bool { return some(copied.Info(soon())).State.Msgs == 2 })
	until(func() bool { return some(joined.Info(soon())).State.Msgs > 5 })
	saw(stateOf(copied), some(copied.Info(soon())).Mirror.Name, len(some(joined.Info(soon())).Sources))
	saw(js.DeleteStream(soon(), "S"), js.DeleteStream(soon(), "S"))
}

func pullOnes() {
	js := streamsOf()
	stream := make1(js, jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}})
	fill(js, "s.a", 100)
	consumer := some(stream.CreateConsumer(soon(), jetstream.ConsumerConfig{Durable: "D", Description: "d", BackOff: []time.Duration{time.Second, time.Minute}, MaxDeliver: 4}))
	saw(string(some(json.Marshal(some(consumer.Info(soon())).Config))))
	saw(inOrder(sequences(some(consumer.Fetch(40))), 1, 40), inOrder(sequences(some(consumer.FetchNoWait(40))), 41, 40))
	bytesOf := sequences(some(consumer.FetchBytes(500, jetstream.FetchMaxWait(time.Second))))
	saw(len(bytesOf) > 2 && inOrder(bytesOf, 81, len(bytesOf)))
	msg := some(consumer.Next())
	must(msg.DoubleAck(soon()))
	_ = sequences(some(consumer.FetchNoWait(100)))
	saw(fails(consumer.Next(jetstream.FetchMaxWait(200 * time.Millisecond))))
	filtered := some(stream.CreateConsumer(soon(), jetstream.ConsumerConfig{Durable: "F", FilterSubjects: []string{"s.b", "s.c.*"}}))
	var got []uint64
	fetched := some(filtered.Fetch(4, jetstream.FetchHeartbeat(200*time.Millisecond), jetstream.FetchMaxWait(patience)))
	time.Sleep(500 * time.Millisecond)
	for _, subject := range []string{"s.b", "s.a", "s.c.d", "s.c", "s.b", "s.c.e"} {
		fill(js, subject, 1)
	}
	saw(sequences(fetched))
	consuming := some(consumer.Consume(func(msg jetstream.Msg) { must(msg.Ack()); got = append(got, sequence(msg)) }, jetstream.PullMaxMessages(10)))
	fill(js, "s.z", 200)
	until(func() bool { return len(got) == 206 })
	consuming.Stop()
	iterator := some(some(stream.CreateConsumer(soon(), jetstream.ConsumerConfig{DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, FilterSubject: "s.*"})).Messages())
	for at := 0; at < 4; at++ {
		msg := some(iterator.Next())
		saw(msg.Subject(), sequence(msg), some(msg.Metadata()).NumPending)
	}
	iterator.Stop()
	saw(fails(stream.CreateConsumer(soon(), jetstream.ConsumerConfig{Durable: "D"})), fails(stream.Consumer(soon(), "none")))
	saw(fails(stream.UpdateConsumer(soon(), jetstream.ConsumerConfig{Durable: "none"})))
	paused := some(stream.PauseConsumer(soon(), "D", time.Now().Add(time.Hour)))
	fill(js, "s.a", 1)
	saw(paused.Paused, fails(consumer.Next(jetstream.FetchMaxWait(200*time.Millisecond))))
	saw(some(stream.ResumeConsumer(soon(), "D")).Paused, sequence(some(consumer.Next())))
	pinned := some(stream.CreateConsumer(soon(), jetstream.ConsumerConfig{Durable: "P", PriorityPolicy: jetstream.PriorityPolicyOverflow, PriorityGroups: []string{"g"}}))
	saw(fails(pinned.Fetch(1)), len(sequences(some(pinned.Fetch(2, jetstream.FetchPriorityGroup("g"))))))
	names := []string{}
	for name := range stream.ConsumerNames(soon()).Name() {
		if len(name) == 1 {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	saw(names, stream.DeleteConsumer(soon(), "F"), stream.DeleteConsumer(soon(), "F"))
	work := make1(js, jetstream.StreamConfig{Name: "W", Subjects: []string{"w"}, Retention: jetstream.WorkQueuePolicy})
	fill(js, "w", 3)
	worker := some(work.CreateConsumer(soon(), jetstream.ConsumerConfig{Durable: "W"}))
	saw(fails(work.CreateConsumer(soon(), jetstream.ConsumerConfig{Durable: "W2"})), sequences(some(worker.Fetch(3))), stateOf(work))
	interest := make1(js, jetstream.StreamConfig{Name: "I", Subjects: []string{"i"}, Retention: jetstream.InterestPolicy})
	fill(js, "i", 2)
	one := some(interest.CreateConsumer(soon(), jetstream.ConsumerConfig{Durable: "I1"}))
	two := some(interest.CreateConsumer(soon(), jetstream.ConsumerConfig{Durable: "I2"}))
	fill(js, "i", 2)
	saw(sequences(some(one.Fetch(2))), stateOf(interest), sequences(some(two.Fetch(2))))
	until(func() bool { return some(interest.Info(soon())).State.Msgs == 0 })
	saw(stateOf(interest))
}

func pushOnes() {
	js := streamsOf()
	stream := make1(js, jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}})
	fill(js, "s.a", 100)
	config := jetstream.ConsumerConfig{Durable: "D", DeliverSubject: "to.d", FlowControl: true, IdleHeartbeat: time.Second}
	consumer := some(stream.CreatePushConsumer(soon(), config))
	got := make(chan jetstream.Msg, 1000)
	consuming := some(consumer.Consume(func(msg jetstream.Msg) { must(msg.Ack()); got <- msg }))
	for at := 1; at <= 100; at++ {
		check(sequence(<-got) == uint64(at), "out of order")
	}
	saw(some(consumer.Info(soon())).PushBound)
	consuming.Stop()
	old := some(connect().JetStream(nats.MaxWait(patience)))
	take := func(sub *nats.Subscription, count int) (found []uint64) {
		for at := 0; at < count; at++ {
			found = append(found, some(next(sub).Metadata()).Sequence.Stream)
		}
		return
	}
	last, fresh := some(old.SubscribeSync("s.>", nats.DeliverLast())), some(old.SubscribeSync("s.>", nats.DeliverNew()))
	start := some(old.SubscribeSync("s.>", nats.StartSequence(98), nats.AckNone()))
	limited := some(old.SubscribeSync("s.>", nats.RateLimit(1<<20), nats.EnableFlowControl(), nats.IdleHeartbeat(time.Second)))
	fill(js, "s.b", 1)
	saw(take(last, 2), take(fresh, 1), take(start, 4), inOrder(take(limited, 101), 1, 101))
	bare := next(some(old.SubscribeSync("s.>", nats.HeadersOnly())))
	saw(len(bare.Data), bare.Header)
	members := []*nats.Subscription{
		some(old.QueueSubscribeSync("s.>", "crew", nats.DeliverNew())), some(old.QueueSubscribeSync("s.>", "crew"))}
	parts := [2]int{}
	fill(js, "s.c", 100)
	for parts[0]+parts[1] < 100 {
		for at, member := range members {
			if msg, err := member.NextMsg(20 * time.Millisecond); err == nil {
				must(msg.AckSync())
				parts[at]++
			}
		}
	}
	saw(parts[0] > 0, parts[1] > 0)
	info := some(members[0].ConsumerInfo())
	saw(info.NumAckPending, info.AckFloor.Stream, info.Config.DeliverGroup)
}

func orderedOnes() {
	js := streamsOf()
	stream := make1(js, jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}})
	for at := 0; at < 3000; at++ {
		some(js.PublishAsync("s."+strconv.Itoa(at%7), make([]byte, 100)))
	}
	<-js.PublishAsyncComplete()
	consumer := some(stream.OrderedConsumer(soon(), jetstream.OrderedConsumerConfig{}))
	iterator := some(consumer.Messages())
	for at := uint64(1); at <= 3000; at++ {
		check(sequence(some(iterator.Next())) == at, "out of order")
	}
	iterator.Stop()
	filtered := some(stream.OrderedConsumer(soon(), jetstream.OrderedConsumerConfig{FilterSubjects: []string{"s.3"}, OptStartSeq: 1000, DeliverPolicy: jetstream.DeliverByStartSequencePolicy}))
	saw(len(sequencesOnly(some(filtered.Fetch(285, jetstream.FetchMaxWait(patience))))))
	old := some(connect().JetStream(nats.MaxWait(patience)))
	sub := some(old.SubscribeSync("s.>", nats.OrderedConsumer()))
	for at := uint64(1); at <= 3000; at++ {
		check(some(next(sub).Metadata()).Sequence.Stream == at, "out of order")
	}
	saw("in order")
}

func sequencesOnly(batch jetstream.MessageBatch) (found []uint64) {
	for msg := range batch.Messages() {
		found = append(found, sequence(msg))
	}
	must(batch.Error())
	return
}

func ackOnes() {
	js := streamsOf()
	stream := make1(js, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
	advisories := some(js.Conn().SubscribeSync("$JS.EVENT.ADVISORY.CONSUMER.>"))
	fill(js, "s", 8)
	consumer := some(stream.CreateConsumer(soon(), jetstream.ConsumerConfig{Durable: "D", AckWait: 1500 * time.Millisecond, MaxDeliver: 3}))
	by := map[uint64]jetstream.Msg{}
	for msg := range some(consumer.Fetch(7)).Messages() {
		by[sequence(msg)] = msg
	}
	must(by[1].Ack())
	must(by[2].DoubleAck(soon()))
	must(by[3].Nak())
	must(by[4].NakWithDelay(500 * time.Millisecond))
	must(by[5].TermWithReason("no use"))
	saw(by[1].Ack(), by[6].Term())
	for at := 0; at < 8; at++ {
		must(by[7].InProgress())
		time.Sleep(250 * time.Millisecond)
	}
	must(by[7].Ack())
	counts := map[uint64]uint64{}
	for counts[3] < 3 || counts[4] < 3 || counts[8] < 3 {
		for msg := range some(consumer.Fetch(10, jetstream.FetchMaxWait(time.Second))).Messages() {
			counts[sequence(msg)] = some(msg.Metadata()).NumDelivered
		}
	}
	saw(counts, fails(consumer.Next(jetstream.FetchMaxWait(2*time.Second))))
	info := some(consumer.Info(soon()))
	saw(info.NumAckPending, info.NumRedelivered, info.NumPending, info.Delivered.Stream, info.AckFloor.Stream)
	kinds := map[string]int{}
	for {
		msg, err := advisories.NextMsg(time.Second)
		if errors.Is(err, nats.ErrTimeout) {
			break
		}
		kinds[msg.Subject]++
	}
	saw(kinds)
	every := some(stream.CreateConsumer(soon(), jetstream.ConsumerConfig{Durable: "A", AckPolicy: jetstream.AckAllPolicy}))
	last := jetstream.Msg(nil)
	for msg := range some(every.Fetch(6)).Messages() {
		last = msg
	}
	must(last.DoubleAck(soon()))
	info = some(every.Info(soon()))
	saw(info.AckFloor.Stream, info.NumAckPending)
}

func killOnes() {
	js := streamsOf()
	stream := make1(js, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
	for at := 0; at < 500; at++ {
		some(js.PublishAsync("s", []byte(strconv.Itoa(at))))
	}
	<-js.PublishAsyncComplete()
	some(stream.CreateConsumer(soon(), jetstream.ConsumerConfig{Durable: "D"}))
	ordered := some(some(stream.OrderedConsumer(soon(), jetstream.OrderedConsumerConfig{})).Messages())
	for at := uint64(1); at <= 500; at++ {
		check(sequence(some(ordered.Next())) == at, "out of order")
	}
	ask("stop")
	ask("start")
	until(func() bool { return js.Conn().IsConnected() })
	until(func() bool { _, err := js.Stream(soon(), "S"); return err == nil })
	saw(stateOf(some(js.Stream(soon(), "S"))))
	fill(js, "s", 100)
	// An ordered consumer finds its way back.
	for at := uint64(501); at <= 600; at++ {
		check(sequence(some(ordered.Next())) == at, "out of order")
	}
	consumer := some(js.Consumer(soon(), "S", "D"))
	saw(inOrder(sequences(some(consumer.Fetch(600))), 1, 600))
}

func keyValueOnes() {
	js, other := streamsOf(), streamsOf()
	bucket := some(js.CreateKeyValue(soon(), jetstream.KeyValueConfig{Bucket: "b", History: 3, Description: "words", LimitMarkerTTL: time.Hour}))
	seen := some(other.KeyValue(soon(), "b"))
	watch := some(seen.WatchAll(soon()))
	saw((<-watch.Updates()) == nil)
	// Each change is read before the next is made: what the history has no room for any more
	// is not told to a watcher that comes late.
	told := func() {
		entry := <-watch.Updates()
		saw(entry.Key(), string(entry.Value()), entry.Revision(), entry.Operation(), entry.Delta())
	}
	for at := 0; at < 5; at++ {
		some(bucket.Put(soon(), "a.x", []byte(strconv.Itoa(at))))
		told()
	}
	saw(some(bucket.Create(soon(), "new", []byte("n"))), fails(bucket.Create(soon(), "new", []byte("m"))))
	told()
	saw(some(bucket.Update(soon(), "new", []byte("o"), 6)), fails(bucket.Update(soon(), "new", []byte("p"), 6)))
	told()
	must(bucket.Delete(soon(), "a.x"))
	told()
	some(bucket.PutString(soon(), "gone", "?"))
	told()
	must(bucket.Purge(soon(), "gone"))
	told()
	saw(some(bucket.Create(soon(), "a.x", []byte("again"))), bucket.Delete(soon(), "a.x", jetstream.LastRevision(3)))
	told()
	for _, key := range []string{"a.x", "gone"} {
		for _, entry := range some(seen.History(soon(), key)) {
			saw(entry.Revision(), string(entry.Value()), entry.Operation())
		}
	}
	keys := some(seen.Keys(soon()))
	sort.Strings(keys)
	filtered := []string{}
	for key := range some(seen.ListKeysFiltered(soon(), "a.*")).Keys() {
		filtered = append(filtered, key)
	}
	saw(keys, filtered, string(some(seen.GetRevision(soon(), "a.x", 5)).Value()))
	saw(fails(seen.Get(soon(), "gone")), fails(seen.Get(soon(), "never")))
	must(bucket.PurgeDeletes(soon(), jetstream.DeleteMarkersOlderThan(-1)))
	status, err := seen.Status(soon())
	must(err)
	saw(status.Values(), status.History(), status.TTL(), status.Bucket(), status.LimitMarkerTTL())
	saw(js.DeleteKeyValue(soon(), "b"), fails(js.KeyValue(soon(), "b")))
}

func objectOnes() {
	js, other := streamsOf(), streamsOf()
	bucket := some(js.CreateObjectStore(soon(), jetstream.ObjectStoreConfig{Bucket: "o", Description: "things"}))
	seen := some(other.ObjectStore(soon(), "o"))
	watch := some(seen.Watch(soon()))
	saw((<-watch.Updates()) == nil)
	told := func() {
		entry := <-watch.Updates()
		saw(entry.Name, entry.Size)
	}
	whole := content()
	info := some(bucket.Put(soon(), jetstream.ObjectMeta{Name: "thing", Description: "big"}, bytes.NewReader(whole)))
	saw(info.Name, info.Size, info.Chunks, info.Digest)
	told()
	saw(bytes.Equal(some(seen.GetBytes(soon(), "thing")), whole))
	some(bucket.PutString(soon(), "small", "first"))
	told()
	some(bucket.PutString(soon(), "small", "second"))
	told()
	saw(some(seen.GetString(soon(), "small")))
	link := some(bucket.AddLink(soon(), "link", info))
	saw(link.Opts.Link.Name, len(some(seen.GetBytes(soon(), "link"))) == len(whole))
	must(bucket.UpdateMeta(soon(), "small", jetstream.ObjectMeta{Name: "renamed", Description: "new"}))
	names := []string{}
	for _, one := range some(seen.List(soon())) {
		names = append(names, one.Name+one.Description)
	}
	sort.Strings(names)
	saw(names)
	must(bucket.Delete(soon(), "thing"))
	saw(fails(seen.Get(soon(), "thing")), some(seen.GetInfo(soon(), "thing", jetstream.GetObjectInfoShowDeleted())).Deleted)
	status := some(seen.Status(soon()))
	saw(status.Size() < 3000, status.Sealed(), status.Description())
	must(bucket.Seal(soon()))
	saw(some(seen.Status(soon())).Sealed(), fails(bucket.PutString(soon(), "late", "")))
	saw(js.DeleteObjectStore(soon(), "o"), fails(js.ObjectStore(soon(), "o")))
}

func init() {
	for name, act := range map[string]func(){
		"streams": streamsOnes, "streams-pull": pullOnes, "streams-push": pushOnes,
		"streams-ordered": orderedOnes, "streams-acks": ackOnes, "streams-kill": killOnes,
		"key-value": keyValueOnes, "objects": objectOnes,
	} {
		behaviours[name] = act
	}
}
