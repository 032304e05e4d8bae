package supervisor

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// lock is the advisory lock of the one that acts. It lives as long as its session.
type lock struct {
	pool *pgxpool.Pool
	idle time.Duration // after which PostgreSQL ends the session of a holder that says nothing
	conn *pgxpool.Conn
	// A dry run acts beside the one that has the lock, and must not keep it from that one.
	dry, begun bool
}

const (
	// LockKey is the key of the lock: any number that nobody else uses in this database.
	LockKey = 0x6f7574626f78 // "outbox"
	// LockIdle: a leader that is frozen, or whose host is gone, must not keep the others from acting for as
	// long as its connection seems to live. It is longer than a look and the pause after it.
	LockIdle = 30 * time.Second
	// pingTimeout bounds a question to the lock's session.
	pingTimeout = 5 * time.Second
)

// hold takes the lock, or makes sure that it is still held; anew says that it was not held before.
func (l *lock) hold(ctx context.Context) (held, anew bool, err error) {
	if l.dry {
		anew, l.begun = !l.begun, true
		return true, anew, nil
	}
	if l.held(ctx) {
		return true, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return false, false, err
	}
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(LockKey)).Scan(&held); err != nil || !held {
		conn.Release()
		return false, false, err
	}
	l.conn = conn
	if _, err := conn.Exec(ctx, fmt.Sprintf(`SET idle_session_timeout = %d`, l.idle.Milliseconds())); err != nil {
		l.release()
		return false, false, err
	}
	return true, true, nil
}

// held tells whether the lock is still held. If not, it is released.
func (l *lock) held(ctx context.Context) bool {
	if l.conn == nil {
		return l.dry
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if l.conn.Ping(ctx) != nil {
		l.release()
		return false
	}
	return true
}

// during does work, which may take long, and keeps the session of the lock from idling out meanwhile. If the lock is lost
// nevertheless, [lock.held] tells afterwards.
func (l *lock) during(work func()) {
	if l.conn == nil {
		work()
		return
	}
	ctx, done := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(l.idle / 6)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				ping, cancel := context.WithTimeout(context.Background(), pingTimeout) // to cut off a ping would end the session
				_ = l.conn.Ping(ping)
				cancel()
			}
		}
	}()
	work()
	done()
	<-ended
}

// release ends the session, and the lock with it.
func (l *lock) release() {
	if l.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = l.conn.Conn().Close(ctx)
	l.conn.Release()
	l.conn = nil
}
