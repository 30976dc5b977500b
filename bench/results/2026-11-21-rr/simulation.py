"""The rule of rr by simulation: workers that serve one at a time and accept at once (FIFO each)."""
import heapq, random, math, sys
def slack_of(kind, least):
    if kind=='strict': return None
    if kind=='sqrt': return math.isqrt(least)
    return int(kind)
def run(kind, n, clients, service, seed, total):
    rnd=random.Random(seed); load=[0]*n; free_at=[0.0]*n; counts=[0]*n; turn=0; ev=[]; lat=[]; t=0
    for c in range(clients): heapq.heappush(ev,(rnd.random()*1e-3,'a',c,0))
    done=0
    while done<total:
        t,what,c,w=heapq.heappop(ev)
        if what=='d':
            load[w]-=1; done+=1
            heapq.heappush(ev,(t+1e-4,'a',c,0)); continue
        least=min(load)
        s=slack_of(kind,least)
        for k in range(n):
            w=(turn+k)%n
            if s is None or load[w]<=least+s: break
        turn=(w+1)%n; load[w]+=1; counts[w]+=1
        d=service(rnd,c); start=max(t,free_at[w]); free_at[w]=start+d
        lat.append((start-t,c)); heapq.heappush(ev,(start+d,'d',c,w))
    return lat,counts,t
def p(xs,q): xs=sorted(xs); return xs[min(len(xs)-1,int(q*len(xs)))]
even=lambda r,c: 1e-3
unev=lambda r,c: r.expovariate(1/1e-3)
slow=lambda r,c: 0.3 if c==0 else 4e-4
print("workers clients service rule: mean wait ms, p99 wait ms, busiest/mean of counts, connections/s")
for n in (2,8,64):
    for name,svc,cl in (("even",even,n+n//2+1),("uneven",unev,n),("uneven",unev,2*n),("1 slow",slow,5 if n==2 else n//2+1)):
        for kind in ('strict','0','1','sqrt','2','4'):
            lat,counts,t=run(kind,n,cl,svc,1,30000)
            w=[x for x,c in lat if name!="1 slow" or c!=0]
            print(f"{n:3} {cl:4} {name:7} {kind:6}: {1e3*sum(w)/len(w):7.3f} {1e3*p(w,.99):8.3f} {max(counts)/(sum(counts)/n):.3f} {30000/t:9.0f}")

def keep(kind,n,per,seed=3,events=60000,short=0.5):
    """Connections with lognormal lifetimes come at a rate that keeps n*per open; half of all arrivals are short requests, one at a time."""
    rnd=random.Random(seed); load=[0]*n; turn=0; t=0; ends=[]; sh=[0]*n; worst=[]; mean_life=1.0; rate=n*per/mean_life
    def pick():
        nonlocal turn
        least=min(load); s=slack_of(kind,least)
        for k in range(n):
            w=(turn+k)%n
            if s is None or load[w]<=least+s: break
        turn=(w+1)%n; return w
    for i in range(events):
        t+=rnd.expovariate(rate)
        while ends and ends[0][0]<=t: load[heapq.heappop(ends)[1]]-=1
        w=pick(); load[w]+=1; heapq.heappush(ends,(t+rnd.lognormvariate(-1.125,1.5),w))
        sh[pick()]+=1   # over before the next comes
        if i>events//3 and i%50==0: worst.append(max(load)/(sum(load)/n))
    # then a third of the connections break at once and none comes: 2000 short requests, four at a time
    keepers=[e for e in ends if rnd.random()>1/3]
    load[:]=[0]*n
    for e in keepers: load[e[1]]+=1
    got=[0]*n; open4=[]
    for i in range(2000):
        if len(open4)==4: load[open4.pop(rnd.randrange(4))]-=1
        w=pick(); load[w]+=1; got[w]+=1; open4.append(w)
    return sum(worst)/len(worst), max(sh)/(sum(sh)/n), max(got)/(sum(got)/n)
print("workers open-each kind: open busiest/mean | short requests busiest/mean | after a third broke off")
for n,per in ((2,20),(2,200),(8,20),(8,200),(64,20),(64,200)):
    for kind in ('strict','0','1','sqrt','4'):
        a,b,c=keep(kind,n,per,events=8*n*per+20000 if n<64 else 40000)
        print(f"{n:3} {per:4} {kind:6}: {a:.3f} {b:.2f} {c:.2f}")
